//! Many small calls on one gRPC stream: the shape that the messages of such a stream have in common.

use prost::Message;

use crate::v1;

/// A call or a reply: what it says, and the number by which the two find each other.
pub trait Numbered: Message + Default + Send + 'static {
    /// The number, unique among the calls under way on a stream.
    fn number(&self) -> u64;
    /// Gives it its number.
    fn set_number(&mut self, number: u64);
}

/// One message of a stream: several calls or replies.
pub trait Frame: Message + Default + Send + 'static {
    /// What it holds.
    type Item: Numbered;
    /// Packs items.
    fn pack(items: Vec<Self::Item>) -> Self;
    /// Unpacks them.
    fn unpack(self) -> Vec<Self::Item>;
}

macro_rules! frame {
    ($($frame:ident { $field:ident: $item:ident }),* $(,)?) => {$(
        impl Numbered for v1::$item {
            fn number(&self) -> u64 {
                self.id
            }
            fn set_number(&mut self, number: u64) {
                self.id = number;
            }
        }
        impl Frame for v1::$frame {
            type Item = v1::$item;
            fn pack($field: Vec<v1::$item>) -> Self {
                Self { $field }
            }
            fn unpack(self) -> Vec<v1::$item> {
                self.$field
            }
        }
    )*};
}

frame!(
    StorageCalls { calls: StorageCall },
    StorageReplies { replies: StorageReply },
    ReplicaCalls { calls: ReplicaCall },
    ReplicaReplies { replies: ReplicaReply },
);
