//! Requests by service, method, origin and code, with their durations: the metrics that service levels are
//! counted by. An [`Operation`] is the handle of one method: it is looked up once, and touching it costs one
//! atomic step and one short lock.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use debros_proto::ErrorCode;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::histograms;
use super::recorders::{Counter, Histogram};

/// Whose request it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Origin {
    /// A user's: service levels count these.
    Client,
    /// Another node's, on behalf of a user's that is counted there, or on its own.
    Node,
}

impl Origin {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Client, Self::Node];

    fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Node => "node",
        }
    }
}

/// The code of a request that succeeded.
const OK: &str = "OK";
/// Every code of the contract, in its order. Wire numbers of later versions count as INTERNAL.
const CODES: [ErrorCode; 20] = [
    ErrorCode::Unspecified,
    ErrorCode::InvalidArgument,
    ErrorCode::Sql,
    ErrorCode::NotFound,
    ErrorCode::AlreadyExists,
    ErrorCode::PermissionDenied,
    ErrorCode::LimitExceeded,
    ErrorCode::NotLeader,
    ErrorCode::Unavailable,
    ErrorCode::Busy,
    ErrorCode::UnknownOutcome,
    ErrorCode::SessionExpired,
    ErrorCode::StaleEpoch,
    ErrorCode::WrongCluster,
    ErrorCode::BudgetExceeded,
    ErrorCode::DiskFull,
    ErrorCode::ShuttingDown,
    ErrorCode::Internal,
    ErrorCode::NotReady,
    ErrorCode::DeadlineExceeded,
];
/// The place of success among a method's counters.
const OK_PLACE: usize = CODES.len();
/// What a working cluster gives when it does not work. Their counters begin at zero, so that the first one is a rise and
/// not a series that nobody has seen before.
const FAULTS: [ErrorCode; 7] = [
    ErrorCode::Unavailable,
    ErrorCode::Busy,
    ErrorCode::UnknownOutcome,
    ErrorCode::DeadlineExceeded,
    ErrorCode::DiskFull,
    ErrorCode::Internal,
    ErrorCode::NotReady,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    service: &'static str,
    method: &'static str,
    origin: &'static str,
    code: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DurationLabels {
    service: &'static str,
    method: &'static str,
    origin: &'static str,
}

type Durations = Family<DurationLabels, Histogram, fn() -> Histogram>;

/// The families, from which handles are made. Cheap to clone.
#[derive(Clone)]
pub struct Operations {
    requests: Family<RequestLabels, Counter>,
    durations: Durations,
}

impl Operations {
    /// Registers the metrics.
    pub fn register(registry: &mut Registry) -> Self {
        let durations: Durations = Family::new_with_constructor(histograms::durations);
        let operations = Self { requests: Family::default(), durations };
        registry.register(
            "debros_rpc_requests",
            "Requests answered; origin client are those of users, origin node what nodes forward or ask each other",
            operations.requests.clone(),
        );
        registry.register(
            "debros_rpc_duration_seconds",
            "Time from a request's arrival to its answer, with what was waited for at other nodes",
            operations.durations.clone(),
        );
        operations
    }

    /// The handle of a method.
    pub fn operation(&self, service: &'static str, method: &'static str, origin: Origin) -> Operation {
        let origin = origin.as_str();
        let duration = self.durations.get_or_create_owned(&DurationLabels { service, method, origin });
        let labels = RequestLabels { service, method, origin, code: OK };
        let codes = [const { OnceLock::new() }; CODES.len() + 1];
        let inner = Inner { requests: self.requests.clone(), labels, codes, duration };
        inner.counter(OK_PLACE);
        // Service levels ask for these.
        if origin == Origin::Client.as_str() {
            for code in FAULTS {
                inner.counter(place_of(code));
            }
        }
        Operation(Arc::new(inner))
    }
}

/// One method of one service. Cheap to clone.
#[derive(Clone)]
pub struct Operation(Arc<Inner>);

struct Inner {
    requests: Family<RequestLabels, Counter>,
    labels: RequestLabels,
    /// By the place of the code; a code that has not come has no series.
    codes: [OnceLock<Counter>; CODES.len() + 1],
    duration: Histogram,
}

impl Inner {
    fn counter(&self, place: usize) -> &Counter {
        self.codes[place].get_or_init(|| {
            let code = CODES.get(place).map_or(OK, ErrorCode::as_str_name);
            self.requests.get_or_create_owned(&RequestLabels { code, ..self.labels.clone() })
        })
    }
}

impl Operation {
    /// Counts an answer.
    pub fn answered(&self, error: Option<ErrorCode>, took: Duration) {
        self.0.counter(error.map_or(OK_PLACE, place_of)).inc();
        self.0.duration.observe(took.as_secs_f64());
    }
}

fn place_of(code: ErrorCode) -> usize {
    let internal = || CODES.iter().position(|known| *known == ErrorCode::Internal);
    CODES.iter().position(|known| *known == code).or_else(internal).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use debros_proto::ErrorCode;
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::{CODES, Operations, Origin, place_of};

    #[test]
    fn every_code_of_the_contract_has_its_own_counter() {
        let known: Vec<ErrorCode> = (0..).map_while(|number| ErrorCode::try_from(number).ok()).collect();
        assert_eq!(known, CODES);
        assert!(CODES.iter().enumerate().all(|(place, code)| place_of(*code) == place));
    }

    #[test]
    fn what_may_go_wrong_is_there_from_the_start_and_what_did_is_counted() {
        let mut registry = Registry::default();
        let operation =
            Operations::register(&mut registry).operation("storage", "StorageGet", Origin::Client);
        let written = || {
            let mut text = String::new();
            encode(&mut text, &registry).unwrap();
            text
        };
        let series = |code: &str| {
            format!(
                "debros_rpc_requests_total{{service=\"storage\",method=\"StorageGet\",origin=\"client\",code=\"{code}\"}}"
            )
        };
        let idle = written();
        for code in ["OK", "UNAVAILABLE", "INTERNAL"] {
            assert!(idle.contains(&format!("{} 0\n", series(code))), "{idle}");
        }
        assert!(!idle.contains(&series("SQL")), "{idle}");
        operation.answered(Some(ErrorCode::Sql), Duration::from_millis(100));
        operation.answered(None, Duration::from_millis(101));
        let busy = written();
        assert!(busy.contains(&format!("{} 1\n", series("SQL"))), "{busy}");
        // The service level's threshold belongs to what is fast enough.
        assert!(
            busy.contains("le=\"0.1\",service=\"storage\",method=\"StorageGet\",origin=\"client\"} 1\n"),
            "{busy}"
        );
    }
}
