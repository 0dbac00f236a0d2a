//! Expressions that the dashboards have in common. `$cluster`, `$node` and `$__rate_interval` are Grafana's to fill in.

/// The labels of the nodes that are looked at.
pub(super) const NODES: &str = "cluster=~\"$cluster\",node=~\"$node\"";
/// The labels of the clusters that are looked at.
pub(super) const CLUSTERS: &str = "cluster=~\"$cluster\"";

/// A gauge of the nodes that are looked at.
pub(super) fn gauge(metric: &str) -> String {
    selected(metric)
}

/// How fast a counter grows, together for each of these labels: `rate("..", "node")`.
pub(super) fn rate(metric: &str, by: &str) -> String {
    format!("sum by ({by}) (rate({}[$__rate_interval]))", selected(metric))
}

/// A quantile of a histogram for each of these labels. Where nothing happened there is none, instead of `NaN`.
pub(super) fn quantile(quantile: f64, histogram: &str, by: &str) -> String {
    let (name, labels) = split(histogram);
    let le = if by.is_empty() { "le".to_owned() } else { format!("le, {by}") };
    let buckets = rate(&format!("{name}_bucket{{{labels}}}"), &le);
    format!("histogram_quantile({quantile}, {buckets}) >= 0")
}

/// The mean of a histogram for each of these labels; 0 where nothing happened.
pub(super) fn mean(histogram: &str, by: &str) -> String {
    let (name, labels) = split(histogram);
    let of = |part: &str| rate(&format!("{name}_{part}{{{labels}}}"), by);
    format!("{} / clamp_min({}, 1e-9)", of("sum"), of("count"))
}

/// A selector with the labels of the nodes that are looked at added to its own.
pub(super) fn selected(metric: &str) -> String {
    let (name, labels) = split(metric);
    if labels.is_empty() { format!("{name}{{{NODES}}}") } else { format!("{name}{{{NODES},{labels}}}") }
}

fn split(metric: &str) -> (&str, &str) {
    metric.split_once('{').map_or((metric, ""), |(name, labels)| (name, labels.trim_end_matches('}')))
}

#[cfg(test)]
mod tests {
    use super::{quantile, rate, selected};

    #[test]
    fn labels_of_the_nodes_join_those_of_the_metric() {
        assert_eq!(selected("up"), "up{cluster=~\"$cluster\",node=~\"$node\"}");
        assert_eq!(selected("up{a=\"b\"}"), "up{cluster=~\"$cluster\",node=~\"$node\",a=\"b\"}");
        assert!(rate("x_total", "node").starts_with("sum by (node) (rate(x_total{cluster"));
        assert!(
            quantile(0.99, "x_seconds{a=\"b\"}", "node")
                .contains("sum by (le, node) (rate(x_seconds_bucket{")
        );
    }
}
