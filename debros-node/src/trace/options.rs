//! What traces are told: keys of the configuration, and of OpenTelemetry's own variables those that say where to and
//! as whom. Sampling has keys of ours alone, so that there is one place to look.

use std::time::Duration;

use debros_config::Config;

/// The variables that name a collector, the more particular one first.
const ENDPOINT_VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
/// Where a collector takes traces, below its address.
const TRACES_PATH: &str = "/v1/traces";

/// How traces are made.
#[derive(Clone, Debug, PartialEq)]
pub struct TraceOptions {
    /// Where the collector takes traces, with its path.
    pub endpoint: String,
    /// Of requests whose caller does not trace, this part is sampled: 0 to 1.
    pub sampling_ratio: f64,
    /// A request that takes longer is kept.
    pub slow: Duration,
}

impl TraceOptions {
    /// What the configuration and the environment say; `None` when nobody named a collector.
    pub fn new(config: &Config, variable: impl Fn(&str) -> Option<String>) -> Option<Self> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        if variable("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            return None;
        }
        let tracing = &config.tracing;
        let [particular, general] = ENDPOINT_VARIABLES;
        let endpoint = match &tracing.otlp_endpoint {
            Some(base) => with_path(base),
            // As the specification has it: the first is used as it is, and the path is below the second, whatever that is.
            None => variable(particular).or_else(|| variable(general).map(|base| below(&base)))?,
        };
        Some(Self {
            endpoint,
            sampling_ratio: tracing.sampling_ratio.as_f64(),
            slow: tracing.slow_threshold.as_duration(),
        })
    }
}

/// The address of a collector and the path; one that has a path is taken as it is.
fn with_path(base: &str) -> String {
    let trimmed = base.trim_end_matches('/');
    let has_path = trimmed.split_once("://").is_some_and(|(_, rest)| rest.contains('/'));
    if has_path { base.to_owned() } else { below(base) }
}

fn below(base: &str) -> String {
    format!("{}{TRACES_PATH}", base.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use debros_config::Config;

    use super::TraceOptions;

    fn endpoint(yaml: &str, variables: &[(&str, &str)]) -> Option<String> {
        let config = Config::from_yaml(yaml).expect("a configuration").config;
        let variable = |name: &str| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        };
        TraceOptions::new(&config, variable).map(|options| options.endpoint)
    }

    #[test]
    fn traces_go_where_the_key_or_the_standard_variables_say() {
        let key = "tracing: { otlp_endpoint: 'http://a:4318' }";
        let (general, particular) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        assert_eq!(endpoint("", &[]), None);
        assert_eq!(endpoint("", &[(general, "")]), None);
        assert_eq!(endpoint(key, &[]).as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(endpoint(key, &[(general, "http://b:1")]).as_deref(), Some("http://a:4318/v1/traces"));
        assert_eq!(endpoint("", &[(general, "http://b:1/")]).as_deref(), Some("http://b:1/v1/traces"));
        let gateway = [(general, "https://gateway/otlp")];
        assert_eq!(endpoint("", &gateway).as_deref(), Some("https://gateway/otlp/v1/traces"));
        let both = [(general, "http://b:1"), (particular, "http://c:1")];
        assert_eq!(endpoint("", &both).as_deref(), Some("http://c:1"));
        let with_path = "tracing: { otlp_endpoint: 'http://a:4318/otlp/traces' }";
        assert_eq!(endpoint(with_path, &[]).as_deref(), Some("http://a:4318/otlp/traces"));
        assert_eq!(endpoint(key, &[("OTEL_SDK_DISABLED", "True")]), None);
    }

    #[test]
    fn every_key_reaches_its_place() {
        let yaml = "tracing: { otlp_endpoint: 'http://a', sampling_ratio: 0.25, slow_threshold: 2s }";
        let config = Config::from_yaml(yaml).expect("a configuration").config;
        let options = TraceOptions::new(&config, |_| None).expect("on");
        assert_eq!((options.sampling_ratio, options.slow.as_secs()), (0.25, 2));
    }
}
