//! Quantities as Kubernetes writes them: `10Gi`, `500M`, `1e9`, `250m`. Only as far as volumes and resources need them.

/// The bytes of a quantity, rounded up; `None` for what is none.
pub fn bytes(text: &str) -> Option<u128> {
    const SUFFIXES: [(&str, u128); 12] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("Ei", 1 << 60),
        ("k", 1_000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("E", 1_000_000_000_000_000_000),
    ];
    let text = text.trim();
    let suffix = SUFFIXES.iter().find_map(|(suffix, unit)| Some((text.strip_suffix(suffix)?, *unit)));
    let (number, unit) = suffix.unwrap_or((text, 1));
    if let Ok(whole) = number.parse::<u64>() {
        return Some(u128::from(whole) * unit);
    }
    let number: f64 = number.parse().ok().filter(|number: &f64| number.is_finite() && *number >= 0.0)?;
    Some((number * unit as f64).ceil() as u128)
}

/// Whether two texts are the same quantity, of bytes or of thousandths.
pub fn are_same(one: &str, other: &str) -> bool {
    thousandths(one).is_some_and(|one| thousandths(other) == Some(one))
}

fn thousandths(text: &str) -> Option<u128> {
    match text.strip_suffix('m') {
        Some(number) => number.parse().ok(),
        None => bytes(text)?.checked_mul(1000),
    }
}

#[cfg(test)]
mod tests {
    use super::{are_same, bytes};

    #[test]
    fn quantities_are_compared_by_what_they_are() {
        for (one, other) in [("1000m", "1"), ("1024Mi", "1Gi"), ("250m", "250m")] {
            assert!(are_same(one, other), "{one} {other}");
        }
        for (one, other) in [("1", "2"), ("100m", "1"), ("a", "a"), ("1Gi", "1G")] {
            assert!(!are_same(one, other), "{one} {other}");
        }
    }

    #[test]
    fn sizes_are_read_as_kubernetes_reads_them() {
        for (text, expected) in
            [("10Gi", 10 << 30), ("0.5Gi", 1 << 29), ("500M", 500_000_000), ("1e9", 1_000_000_000), ("7", 7)]
        {
            assert_eq!(bytes(text), Some(expected), "{text}");
        }
        for text in ["", "Gi", "ten", "-1Gi", "10GB"] {
            assert_eq!(bytes(text), None, "{text}");
        }
    }
}
