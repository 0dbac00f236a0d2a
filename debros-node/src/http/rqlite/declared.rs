//! What rqlite makes of values by their column's declared type: its SQLite driver turns BOOLEAN into
//! `true` and `false`, and DATE, DATETIME and TIMESTAMP into RFC 3339, and its clients count on it
//! (pyrqlite's TIMESTAMP converter looks for the `T`). A value that is no time is left as it is.

/// What a column's declared type does to its values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Declared {
    /// `boolean`: integers become true and false.
    Boolean,
    /// `date`, `datetime`, `timestamp`: times become RFC 3339.
    Time,
    /// Nothing.
    #[default]
    Other,
}

impl Declared {
    /// By the declared type, lower case.
    pub(super) fn of(declared: &str) -> Self {
        match declared {
            "boolean" => Self::Boolean,
            "date" | "datetime" | "timestamp" => Self::Time,
            _ => Self::Other,
        }
    }
}

/// Integers beyond this are milliseconds, as the driver has it: as seconds they would be the
/// year 33658.
const SECONDS_MAX: i64 = 1_000_000_000_000;
/// RFC 3339 has years of four digits: 0000-01-01 to 9999-12-31, in days from 1970-01-01.
const DAYS: std::ops::RangeInclusive<i64> = -719_528..=2_932_896;
const DAY_SECONDS: i64 = 86_400;

/// A time in seconds or milliseconds since 1970 in RFC 3339.
pub(super) fn unix_time(number: i64) -> Option<String> {
    let (seconds, milliseconds) = if (-SECONDS_MAX..=SECONDS_MAX).contains(&number) {
        (number, 0)
    } else {
        (number.div_euclid(1000), number.rem_euclid(1000))
    };
    let days = seconds.div_euclid(DAY_SECONDS);
    if !DAYS.contains(&days) {
        return None;
    }
    let (year, month, day) = civil(days);
    let second = seconds.rem_euclid(DAY_SECONDS);
    let fraction = format!("{milliseconds:03}");
    Some(format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}{}Z",
        second / 3600,
        second / 60 % 60,
        second % 60,
        written_fraction(&fraction)
    ))
}

/// The date of a day counted from 1970-01-01, in the proleptic Gregorian calendar: eras of 400
/// years, years that begin in March.
fn civil(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let march_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * march_month + 2) / 5 + 1;
    let month = if march_month < 10 { march_month + 3 } else { march_month - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

/// A time as SQLite writes it (`2004-02-14 07:15:00.5`, with `T`, `Z` or an offset, or only a date)
/// in RFC 3339.
pub(super) fn text_time(text: &str) -> Option<String> {
    if !text.is_ascii() {
        return None;
    }
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, rest) = text.split_at_checked(10)?;
    check_date(date)?;
    if rest.is_empty() {
        return Some(format!("{date}T00:00:00Z"));
    }
    let rest = rest.strip_prefix([' ', 'T'])?;
    let (time, offset) = match rest.find(['+', '-']) {
        Some(at) => rest.split_at(at),
        None => (rest, ""),
    };
    let offset = match offset {
        "" | "+00:00" | "-00:00" => "Z",
        offset => {
            let (hours, minutes) = offset[1..].split_once(':')?;
            number(hours, 23)?;
            number(minutes, 59)?;
            offset
        }
    };
    let (clock, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = clock.split(':');
    let (hour, minute, second) = (parts.next()?, parts.next()?, parts.next().unwrap_or("00"));
    number(hour, 23)?;
    number(minute, 59)?;
    number(second, 59)?;
    if parts.next().is_some() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    Some(format!("{date}T{hour}:{minute}:{second}{}{offset}", written_fraction(fraction)))
}

fn check_date(date: &str) -> Option<()> {
    let mut parts = date.split('-');
    let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
    let year_is_one = year.len() == 4 && year.bytes().all(|byte| byte.is_ascii_digit());
    (year_is_one && number(month, 12)? > 0 && number(day, 31)? > 0 && parts.next().is_none()).then_some(())
}

/// Two digits up to `max`.
fn number(digits: &str, max: u8) -> Option<u8> {
    let number = digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())??;
    (digits.len() == 2 && number <= max).then_some(number)
}

fn written_fraction(digits: &str) -> String {
    match digits.trim_end_matches('0') {
        "" => String::new(),
        digits => format!(".{digits}"),
    }
}

#[cfg(test)]
mod tests {
    use super::{text_time, unix_time};

    #[test]
    fn times_are_written_as_rqlite_writes_them() {
        let text = |text| text_time(text).unwrap_or_default();
        assert_eq!(text("2004-02-14"), "2004-02-14T00:00:00Z");
        assert_eq!(text("2004-02-14 07:15:00"), "2004-02-14T07:15:00Z");
        assert_eq!(text("2021-10-22 19:39:32.016087"), "2021-10-22T19:39:32.016087Z");
        assert_eq!(text("2021-10-22T19:39Z"), "2021-10-22T19:39:00Z");
        assert_eq!(text("2021-10-22 19:39:32.500+02:00"), "2021-10-22T19:39:32.5+02:00");
        assert_eq!(unix_time(0).unwrap(), "1970-01-01T00:00:00Z");
        assert_eq!(unix_time(1_077_000_000_500).unwrap(), "2004-02-17T06:40:00.5Z");
        assert_eq!(unix_time(-1).unwrap(), "1969-12-31T23:59:59Z");
        assert_eq!(unix_time(951_782_400).unwrap(), "2000-02-29T00:00:00Z");
    }

    #[test]
    fn what_is_no_time_is_left_alone() {
        for other in
            ["", "soon", "2004-2-14", "2004-02-14 25:00:00", "2004-02-14x", "2004-02-14 07", "ä004-02-14"]
        {
            assert_eq!(text_time(other), None, "{other}");
        }
        assert_eq!(unix_time(i64::MAX), None);
        assert_eq!(unix_time(i64::MIN), None);
    }
}
