//! Values that are read when somebody scrapes, because somebody else keeps them already.

use std::fmt;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeCounterValue, EncodeGaugeValue, EncodeMetric, MetricEncoder,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

/// Registers what `read` tells at each scrape. It runs on a thread for blocking work.
pub fn read_at_scrape(
    registry: &mut Registry,
    read: impl Fn(&mut Readings<'_>) -> fmt::Result + Send + Sync + 'static,
) {
    registry.register_collector(Box::new(AtScrape(read)));
}

struct AtScrape<R>(R);

impl<R> fmt::Debug for AtScrape<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl<R> Collector for AtScrape<R>
where
    R: Fn(&mut Readings<'_>) -> fmt::Result + Send + Sync + 'static,
{
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        (self.0)(&mut Readings(encoder))
    }
}

/// Where values are told.
pub struct Readings<'a>(DescriptorEncoder<'a>);

impl Readings<'_> {
    /// A value that goes up and down.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn gauge(&mut self, name: &str, help: &str, value: impl EncodeGaugeValue) -> fmt::Result {
        let gauge = ConstGauge::new(value);
        gauge.encode(self.descriptor(name, help, MetricType::Gauge)?)
    }

    /// A value that only grows; its name is given without `_total`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn counter(&mut self, name: &str, help: &str, value: impl EncodeCounterValue) -> fmt::Result {
        let counter = ConstCounter::new(value);
        counter.encode(self.descriptor(name, help, MetricType::Counter)?)
    }

    /// Values that go up and down, of each value of a label.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn gauges<V: EncodeGaugeValue>(
        &mut self,
        (name, help): (&str, &str),
        label: &str,
        values: impl IntoIterator<Item = (&'static str, V)>,
    ) -> fmt::Result {
        let mut metric = self.descriptor(name, help, MetricType::Gauge)?;
        for (of, value) in values {
            ConstGauge::new(value).encode(metric.encode_family(&[(label, of)])?)?;
        }
        Ok(())
    }

    /// Values that only grow, of each value of a label.
    ///
    /// # Errors
    /// When they cannot be written.
    pub fn counters<V: EncodeCounterValue>(
        &mut self,
        (name, help): (&str, &str),
        label: &str,
        values: impl IntoIterator<Item = (&'static str, V)>,
    ) -> fmt::Result {
        let mut metric = self.descriptor(name, help, MetricType::Counter)?;
        for (of, value) in values {
            ConstCounter::new(value).encode(metric.encode_family(&[(label, of)])?)?;
        }
        Ok(())
    }

    fn descriptor<'s>(
        &'s mut self,
        name: &'s str,
        help: &str,
        kind: MetricType,
    ) -> Result<MetricEncoder<'s>, fmt::Error> {
        self.0.encode_descriptor(name, help, None, kind)
    }
}
