//! The one point that every request passes before it does anything.
//!
//! Principals and actions are complete from the first day; until namespaces have owners and grants
//! the rule is: admitted peers may do everything in their namespaces, and only the platform itself
//! acts in its own.

use debros_net::PeerId;
use debros_proto::names::CANARY_NAMESPACE;
use debros_proto::{ErrorCode, Failure, Namespace, v1};

use crate::cluster::SYSTEM_NAMESPACE;

/// Who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Principal {
    /// A peer whose key the transport proved: an SDK client, or a node that forwards.
    Peer(PeerId),
    /// A caller of the HTTP API.
    Http,
    /// A node that probes: this one, or a member that has forwarded its probe here. It acts in the canary's
    /// namespace, where nobody else does, and nowhere else.
    Node(PeerId),
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Create and drop databases.
    Manage,
    /// Look at the cluster.
    Observe,
    /// Change the cluster.
    Operate,
    /// What nodes ask of each other.
    Cooperate,
}

/// A request that has passed: who, for which namespace, with how much time.
#[derive(Clone, Debug)]
pub struct Authorised {
    /// On whose behalf.
    pub namespace: Namespace,
    /// How often it was forwarded.
    pub hops: u32,
    /// When it is given up.
    pub deadline: tokio::time::Instant,
    /// The sender's epoch.
    pub epoch: u64,
}

/// Checks a request's header and whether the principal may do this.
///
/// # Errors
/// `INVALID_ARGUMENT` for a missing or malformed header, `PERMISSION_DENIED` for what is not allowed.
pub fn authorise(
    principal: &Principal,
    action: Action,
    header: Option<&v1::RequestHeader>,
) -> Result<Authorised, Failure> {
    use debros_proto::limits::{FORWARD_HOPS_MAX, REQUEST_TIMEOUT_DEFAULT, REQUEST_TIMEOUT_MAX};
    let header =
        header.ok_or_else(|| Failure::invalid("the request has no header: name a namespace in it"))?;
    let namespace = Namespace::new(&header.namespace).map_err(|error| Failure::invalid(error.to_string()))?;
    if header.hops > FORWARD_HOPS_MAX {
        return Err(Failure::invalid(format!("a request is forwarded at most {FORWARD_HOPS_MAX} times")));
    }
    let system = namespace.as_str() == SYSTEM_NAMESPACE;
    let touches_data = matches!(action, Action::Read | Action::Write | Action::Manage);
    if system && (touches_data || *principal == Principal::Http) {
        return Err(Failure::new(
            ErrorCode::PermissionDenied,
            format!("namespace {SYSTEM_NAMESPACE} belongs to the platform: use one of your own"),
        ));
    }
    let (canary, node) = (namespace.as_str() == CANARY_NAMESPACE, matches!(principal, Principal::Node(_)));
    if canary != node {
        let message = match canary {
            true => format!("namespace {CANARY_NAMESPACE} is reserved for probes: use one of your own"),
            false => "a node that probes has no business outside the canary's namespace".to_owned(),
        };
        return Err(Failure::new(ErrorCode::PermissionDenied, message));
    }
    if action == Action::Cooperate && !system {
        return Err(Failure::new(ErrorCode::PermissionDenied, "only nodes ask this of one another"));
    }
    let timeout = match header.timeout_ms {
        0 => REQUEST_TIMEOUT_DEFAULT,
        asked => std::time::Duration::from_millis(u64::from(asked)).min(REQUEST_TIMEOUT_MAX),
    };
    let deadline = tokio::time::Instant::now() + timeout;
    Ok(Authorised { namespace, hops: header.hops, deadline, epoch: header.epoch })
}

#[cfg(test)]
mod tests {
    use debros_net::PeerId;
    use debros_proto::{ErrorCode, v1};

    use super::{Action, Principal, authorise};

    fn header(namespace: &str) -> v1::RequestHeader {
        v1::RequestHeader { namespace: namespace.into(), ..Default::default() }
    }

    #[test]
    fn a_request_without_a_namespace_is_refused() {
        let peer = Principal::Peer(PeerId::random());
        for bad in [None, Some(header("")), Some(header("Bad Name"))] {
            let refused = authorise(&peer, Action::Read, bad.as_ref()).unwrap_err();
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
        }
    }

    #[test]
    fn nobody_touches_data_in_the_platforms_namespace() {
        let peer = Principal::Peer(PeerId::random());
        for action in [Action::Read, Action::Write, Action::Manage] {
            let refused = authorise(&peer, action, Some(&header("debros"))).unwrap_err();
            assert_eq!(refused.code, ErrorCode::PermissionDenied);
        }
        assert!(authorise(&peer, Action::Cooperate, Some(&header("debros"))).is_ok());
        assert!(authorise(&peer, Action::Cooperate, Some(&header("app"))).is_err());
        assert!(authorise(&Principal::Http, Action::Observe, Some(&header("debros"))).is_err());
    }

    #[test]
    fn only_nodes_that_probe_are_in_the_canarys_namespace_and_nowhere_else() {
        let (peer, node) = (Principal::Peer(PeerId::random()), Principal::Node(PeerId::random()));
        let (canary, app) = (header(debros_proto::names::CANARY_NAMESPACE), header("app"));
        for action in [Action::Read, Action::Write, Action::Manage, Action::Observe, Action::Operate] {
            for (stranger, place) in [(&peer, &canary), (&Principal::Http, &canary), (&node, &app)] {
                let refused = authorise(stranger, action, Some(place)).unwrap_err();
                assert_eq!(refused.code, ErrorCode::PermissionDenied);
            }
            assert!(authorise(&node, action, Some(&canary)).is_ok());
        }
    }

    #[test]
    fn a_circle_of_forwards_is_cut() {
        let mut looping = header("app");
        looping.hops = 2;
        assert!(authorise(&Principal::Http, Action::Read, Some(&looping)).is_err());
    }
}
