//! Where a call belongs in a distributed trace, in the forms in which it travels: W3C Trace Context
//! (<https://www.w3.org/TR/trace-context/>) as text, and [`v1::TraceContext`] in calls that share a stream. Knows
//! neither who samples nor what a span is.

use crate::v1;

/// The name under which the text travels: as gRPC metadata, as HTTP header, and as header of a published message.
pub const TRACEPARENT: &str = "traceparent";
/// `00-<32 digits>-<16 digits>-<2 digits>`.
const TEXT_BYTES: usize = 55;
/// The one flag that version 00 defines.
const FLAG_SAMPLED: u8 = 1;

/// A span of a trace: the parent of what is done on its behalf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Of all spans of the trace; never 0.
    pub trace: u128,
    /// The span; never 0.
    pub span: u64,
    /// Whoever made the span records it, and asks others to record what they do for it.
    pub sampled: bool,
}

impl TraceContext {
    /// Reads the text. `None` for what is none, which a receiver must treat as if nothing had been sent.
    pub fn parse(text: &[u8]) -> Option<Self> {
        let [version, trace, span, flags] =
            [0..2, 3..35, 36..52, 53..55].map(|range| digits(text.get(range)));
        let (version, trace, span, flags) = (version?, trace?, span?, flags? as u8);
        let separated = [2, 35, 52].iter().all(|at| text[*at] == b'-');
        // A later version may add fields, each behind another `-`; ff is none.
        let length = text.len() == TEXT_BYTES || version > 0 && text.get(TEXT_BYTES) == Some(&b'-');
        let sound = separated && length && version != 0xff && trace != 0 && span != 0;
        sound.then_some(Self { trace, span: span as u64, sampled: flags & FLAG_SAMPLED != 0 })
    }

    /// The text.
    pub fn traceparent(&self) -> String {
        format!("00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }

    /// As calls on streams carry it; `None` for one that no sound sender makes.
    pub fn from_wire(wire: v1::TraceContext) -> Option<Self> {
        let v1::TraceContext { trace_high, trace_low, span, sampled } = wire;
        let trace = u128::from(trace_high) << 64 | u128::from(trace_low);
        (trace != 0 && span != 0).then_some(Self { trace, span, sampled })
    }

    /// The same.
    pub fn to_wire(&self) -> v1::TraceContext {
        let Self { trace, span, sampled } = *self;
        v1::TraceContext { trace_high: (trace >> 64) as u64, trace_low: trace as u64, span, sampled }
    }
}

/// Lower-case hexadecimal digits, as the specification asks for.
fn digits(text: Option<&[u8]>) -> Option<u128> {
    text?.iter().try_fold(0, |number: u128, byte| {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            _ => return None,
        };
        Some(number << 4 | u128::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, prop_assert_eq, proptest};

    use super::TraceContext;

    const TEXT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_example_of_the_specification_is_read() {
        let context = TraceContext::parse(TEXT.as_bytes()).expect("a context");
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.traceparent(), TEXT);
        // A later version, with more behind it.
        let later = TEXT.replacen("00", "cc", 1);
        assert_eq!(TraceContext::parse(later.as_bytes()), Some(context));
        assert_eq!(TraceContext::parse(format!("{later}-more").as_bytes()), Some(context));
    }

    #[test]
    fn what_is_no_context_is_none() {
        for wrong in [
            "",
            "00",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
        ] {
            assert_eq!(TraceContext::parse(wrong.as_bytes()), None, "{wrong}");
        }
        assert_eq!(TraceContext::from_wire(crate::v1::TraceContext::default()), None);
    }

    proptest! {
        #[test]
        fn every_context_survives_both_forms(trace in 1_u128.., span in 1_u64.., sampled: bool) {
            let context = TraceContext { trace, span, sampled };
            prop_assert_eq!(TraceContext::parse(context.traceparent().as_bytes()), Some(context));
            prop_assert_eq!(TraceContext::from_wire(context.to_wire()), Some(context));
        }

        #[test]
        fn no_text_is_a_panic(text in prop::collection::vec(any::<u8>(), 0..70)) {
            TraceContext::parse(&text);
        }
    }
}
