//! All metrics in one of two formats: OpenMetrics text, and the protobuf that Prometheus asks for when it wants
//! native histograms, which text cannot carry.

use std::sync::Arc;

use prometheus_client::encoding::prometheus_protobuf;
use prometheus_client::encoding::text::{encode_eof, encode_registry};
use prometheus_client::registry::Registry;

/// A format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics text, without native histograms.
    Text,
    /// Delimited `io.prometheus.client.MetricFamily` messages, with native and classic histograms.
    Protobuf,
}

impl Format {
    /// The content type of what is written.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::Text => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Protobuf => {
                "application/vnd.google.protobuf; proto=io.prometheus.client.MetricFamily; encoding=delimited"
            }
        }
    }

    /// The format that a scraper prefers: protobuf only where its `Accept` ranks it before any text.
    pub fn accepted(accept: &str) -> Self {
        let (mut protobuf, mut text) = (0.0_f32, 0.0_f32);
        for range in accept.split(',') {
            let mut parts = range.split(';').map(str::trim);
            let media = parts.next().unwrap_or_default();
            let (mut quality, mut delimited) = (1.0, false);
            for part in parts {
                delimited |= part.eq_ignore_ascii_case("encoding=delimited");
                if let Some(told) = part.strip_prefix("q=") {
                    quality = told.parse().unwrap_or(0.0);
                }
            }
            if media.eq_ignore_ascii_case("application/vnd.google.protobuf") && delimited {
                protobuf = protobuf.max(quality);
            } else {
                text = text.max(quality);
            }
        }
        if protobuf > text { Self::Protobuf } else { Self::Text }
    }
}

/// What is written. Cheap to clone.
#[derive(Clone)]
pub struct Exposition(Arc<[Arc<Registry>]>);

impl Exposition {
    /// All of these registries, which must not have a name in common.
    pub fn new(registries: impl IntoIterator<Item = Arc<Registry>>) -> Self {
        Self(registries.into_iter().collect())
    }

    /// Reads every metric. Some ask the disk, so this is blocking work.
    pub fn write(&self, format: Format) -> Vec<u8> {
        match format {
            Format::Text => {
                let mut text = String::new();
                // Writing into a string cannot fail.
                let written = self.0.iter().try_for_each(|registry| encode_registry(&mut text, registry));
                let _ = written.and_then(|()| encode_eof(&mut text));
                text.into_bytes()
            }
            Format::Protobuf => {
                let mut bytes = Vec::new();
                for registry in &*self.0 {
                    match prometheus_protobuf::encode_to_vec(registry) {
                        Ok(written) => bytes.extend(written),
                        Err(error) => tracing::error!(%error, "metrics could not be written"),
                    }
                }
                bytes
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use prometheus_client::registry::Registry;

    use super::super::durations;
    use super::{Exposition, Format};

    #[test]
    fn protobuf_is_for_those_who_rank_it_first() {
        let asked = |accept| Format::accepted(accept);
        let native = "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.6,\
                      application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2";
        assert_eq!(asked(native), Format::Protobuf);
        let text = "application/openmetrics-text;version=1.0.0;q=0.6,\
                    application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.5";
        assert_eq!(asked(text), Format::Text);
        for other in
            ["", "*/*", "text/html", "application/vnd.google.protobuf", "application/vnd.google.protobuf;q=x"]
        {
            assert_eq!(asked(other), Format::Text, "{other}");
        }
    }

    #[test]
    fn protobuf_carries_native_and_classic_buckets_of_a_histogram() {
        let mut registry = Registry::default();
        let histogram = durations();
        registry.register("took_seconds", "How long", histogram.clone());
        histogram.observe(0.1);
        let exposition = Exposition::new([Arc::new(registry)]);
        let text = String::from_utf8(exposition.write(Format::Text)).unwrap();
        assert!(text.contains("took_seconds_bucket{le=\"0.1\"} 1\n") && text.ends_with("# EOF\n"), "{text}");
        let bytes = exposition.write(Format::Protobuf);
        use prometheus_client::encoding::prometheus_protobuf::prometheus_data_model::MetricFamily;
        let family = <MetricFamily as prost::Message>::decode_length_delimited(&bytes[..]).unwrap();
        let histogram = family.metric[0].histogram.as_ref().unwrap();
        assert_eq!((histogram.bucket.len(), histogram.positive_span.len()), (15, 1));
    }
}
