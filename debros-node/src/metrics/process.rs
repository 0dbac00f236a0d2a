//! The process under the names that Prometheus' own clients use, as the `prometheus` crate's collector reads them from
//! `/proc`. Where there is no `/proc`, which is everywhere but on Linux, there are no such metrics.

use prometheus_client::registry::Registry;

#[cfg(not(target_os = "linux"))]
pub(super) fn register(_registry: &mut Registry) {}

#[cfg(target_os = "linux")]
pub(super) fn register(registry: &mut Registry) {
    use prometheus::core::Collector;

    let collector = prometheus::process_collector::ProcessCollector::for_self();
    super::read_at_scrape(registry, move |readings| {
        for family in collector.collect() {
            let Some(metric) = family.get_metric().first() else { continue };
            // Ours puts it behind every counter.
            match family.name().strip_suffix("_total") {
                Some(name) => readings.counter(name, family.help(), metric.get_counter().get_value())?,
                None => readings.gauge(family.name(), family.help(), metric.get_gauge().get_value())?,
            }
        }
        Ok(())
    });
}
