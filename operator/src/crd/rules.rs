//! What the schema alone cannot say: CEL rules, each with a message that tells what to do. Kubernetes evaluates them at
//! every write, so a wrong resource never reaches the operator.

use serde_json::{Value, json};

/// The longest name of a resource: with `-bootstrap`, and the eleven characters that Kubernetes adds to the revisions
/// of a StatefulSet, it must fit the 63 of a label.
pub const NAME_BYTES_MAX: usize = 40;

/// One rule.
#[derive(Clone, Copy, Debug)]
pub struct Rule {
    /// The fields from the root of the resource to where it stands.
    pub at: &'static [&'static str],
    /// The CEL expression.
    pub rule: &'static str,
    /// What the user is told.
    pub message: &'static str,
}

const SHRINK: &str = "a volume cannot shrink: give a size that is not smaller than before; to use less, add nodes with \
                      smaller volumes to the other set and remove these";
const QUANTITY: &str = "storage.size must be a quantity that is more than zero, such as 10Gi or 500Mi";
const CLASS: &str = "storage.storageClassName cannot be changed, volumes stay in their class: keep it as it was; to move \
                     to another class, make a new cluster and copy the data";

/// All of them.
pub const RULES: &[Rule] = &[
    Rule {
        at: &[],
        rule: "size(self.metadata.name) <= 40 && self.metadata.name.matches('^[a-z]([-a-z0-9]*[a-z0-9])?$')",
        message: "the name must have at most 40 lower-case letters, digits and '-', beginning with a letter, since pods \
                  and DNS names are made of it: choose a shorter or simpler one",
    },
    Rule {
        at: &["spec"],
        rule: "self.bootstrap.replicas in [1, 3, 5]",
        message: "spec.bootstrap.replicas must be 1, 3 or 5, an even number survives no more failures: choose one of \
                  them, and scale spec.peers for more nodes",
    },
    Rule {
        at: &["spec"],
        rule: "has(self.tls) || !has(oldSelf.tls)",
        message: "spec.tls cannot be taken away, clients would speak plain HTTP unawares: give another secretName instead",
    },
    Rule {
        at: &["spec"],
        rule: "!has(self.config) || !has(self.config.security) || !has(self.config.security.auth_enabled) || \
               !self.config.security.auth_enabled || self.admission.mode == 'Closed'",
        message: "config.security.auth_enabled needs closed admission: leave spec.admission.mode at Closed",
    },
    Rule { at: &["spec", "bootstrap", "storage"], rule: SIZE_RULE, message: QUANTITY },
    Rule { at: &["spec", "bootstrap", "storage"], rule: SHRINK_RULE, message: SHRINK },
    Rule { at: &["spec", "bootstrap", "storage"], rule: CLASS_RULE, message: CLASS },
    Rule { at: &["spec", "peers", "storage"], rule: SIZE_RULE, message: QUANTITY },
    Rule { at: &["spec", "peers", "storage"], rule: SHRINK_RULE, message: SHRINK },
    Rule { at: &["spec", "peers", "storage"], rule: CLASS_RULE, message: CLASS },
    Rule {
        at: &["spec", "admission"],
        rule: "self.mode == oldSelf.mode",
        message: "admission.mode cannot be changed, nodes of both modes cannot speak to each other: make a new cluster \
                  and copy the data",
    },
    Rule {
        at: &["spec", "admission"],
        rule: "has(self.secretName) == has(oldSelf.secretName) && (!has(self.secretName) || self.secretName == \
               oldSelf.secretName)",
        message: "admission.secretName cannot be changed, running nodes prove the secret they have: keep the name",
    },
    Rule {
        at: &["spec", "admission"],
        rule: "self.mode == 'Closed' || !has(self.secretName)",
        message: "admission.secretName has no effect with mode Open: remove it, or leave the mode at Closed",
    },
];

const SIZE_RULE: &str = "isQuantity(self.size) && quantity(self.size).isGreaterThan(quantity('0'))";
const SHRINK_RULE: &str = "!isQuantity(self.size) || !isQuantity(oldSelf.size) || !quantity(self.size).isLessThan(quantity(oldSelf.size))";
const CLASS_RULE: &str = "has(self.storageClassName) == has(oldSelf.storageClassName) && (!has(self.storageClassName) || \
                          self.storageClassName == oldSelf.storageClassName)";

/// Puts the rules into the schema of the resource.
///
/// # Panics
/// When a rule names a field that is not there: a mistake in the table.
pub(super) fn insert(schema: &mut Value) {
    for Rule { at, rule, message } in RULES {
        let mut place = &mut *schema;
        for field in *at {
            place = &mut place["properties"][*field];
            assert!(place.is_object(), "there is no field {field} for the rule {rule}");
        }
        let rules = &mut place["x-kubernetes-validations"];
        if rules.is_null() {
            *rules = json!([]);
        }
        let rules = rules.as_array_mut().expect("a list of rules");
        rules.push(json!({ "rule": rule, "message": message }));
    }
}
