//! How a setting's text becomes a value, and a value its text again.
//!
//! Invariant: what a `show_*` function prints, the parser of the same kind reads back unchanged.

use std::fmt::Display;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

const KIB: u64 = 1024;
const MIB: u64 = 1024 * KIB;
const GIB: u64 = 1024 * MIB;

/// Units of time with their milliseconds, longest first as `show_duration` wants them.
const DURATIONS: &[(&str, u64)] =
    &[("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1_000), ("ms", 1)];

/// Reads a whole number within a range.
pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Result<T, String>
where
    T: FromStr + PartialOrd + Display,
{
    let plain: String = text.chars().filter(|c| *c != '_').collect();
    match plain.parse::<T>() {
        Ok(value) if range.contains(&value) => Ok(value),
        _ => Err(format!("must be a whole number from {} to {}", range.start(), range.end())),
    }
}

/// Reads a size in bytes: `67108864`, `64 MiB`, `64MB`.
pub(super) fn size(text: &str, range: RangeInclusive<u64>) -> Result<u64, String> {
    match text.parse::<bytesize::ByteSize>() {
        Ok(value) if range.contains(&value.as_u64()) => Ok(value.as_u64()),
        _ => Err(format!(
            "must be a size from {} to {}, like \"64 MiB\"",
            show_size(*range.start()),
            show_size(*range.end())
        )),
    }
}

/// Prints a size exactly, in the largest binary unit that divides it.
pub(super) fn show_size(bytes: u64) -> String {
    for (unit, name) in [(GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB")] {
        if bytes >= unit && bytes.is_multiple_of(unit) {
            return format!("{} {name}", bytes / unit);
        }
    }
    bytes.to_string()
}

/// Reads a duration: a whole number and a unit (`ms`, `s`, `min` or `m`, `h`, `d`).
pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Result<Duration, String> {
    match read_duration(text) {
        Some(value) if range.contains(&value) => Ok(value),
        _ => Err(format!(
            "must be a duration from {} to {}, like \"500ms\" or \"30s\"",
            show_duration(*range.start()),
            show_duration(*range.end())
        )),
    }
}

fn read_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit())?;
    let (digits, unit) = text.split_at_checked(split)?;
    let unit = match unit.trim() {
        "m" => "min",
        other => other,
    };
    let (_, millis) = DURATIONS.iter().find(|(name, _)| *name == unit)?;
    digits.parse::<u64>().ok()?.checked_mul(*millis).map(Duration::from_millis)
}

/// Prints a duration exactly (to the millisecond), in the largest unit that divides it.
pub(super) fn show_duration(value: Duration) -> String {
    let total = u64::try_from(value.as_millis()).unwrap_or(u64::MAX);
    for (name, millis) in DURATIONS {
        if total >= *millis && total.is_multiple_of(*millis) {
            return format!("{}{name}", total / millis);
        }
    }
    String::from("0ms")
}

/// Reads `true` or `false`.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| String::from("must be true or false"))
}

/// Reads an address to listen on.
pub(super) fn address(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        String::from("must be an IP address and a port, like \"127.0.0.1:8080\" or \"[::1]:8080\"")
    })
}

/// Reads the URL under which clients reach the node, without a trailing slash.
pub(super) fn base_url(text: &str) -> Result<String, String> {
    let trimmed = text.trim_end_matches('/');
    let host = ["http://", "https://"].iter().find_map(|scheme| trimmed.strip_prefix(scheme));
    match host {
        Some(host) if !host.is_empty() && !host.contains(|c: char| c.is_whitespace()) => {
            Ok(trimmed.to_owned())
        }
        _ => Err(String::from("must be a URL, like \"http://events.example.org:8080\"")),
    }
}

/// Reads `host:port` as other nodes dial it.
pub(super) fn host_port(text: &str) -> Result<String, String> {
    let parts = text.rsplit_once(':');
    match parts {
        Some((host, port))
            if !host.is_empty()
                && !host.contains(|c: char| c.is_whitespace() || c == '/')
                && port.parse::<u16>().is_ok_and(|port| port > 0) =>
        {
            Ok(text.to_owned())
        }
        _ => Err(String::from("must be a host and a port, like \"node1.example.org:9090\"")),
    }
}

/// Reads a list separated by commas; empty text is the empty list.
pub(super) fn list(
    text: &str,
    item: impl Fn(&str) -> Result<String, String>,
) -> Result<Vec<String>, String> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(item).collect()
}

/// Reads text that says something.
pub(super) fn text(value: &str) -> Result<String, String> {
    if value.trim().is_empty() {
        return Err(String::from("must not be empty"));
    }
    Ok(value.to_owned())
}

/// Prints text as a TOML string.
pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

/// Prints a list as a TOML array.
pub(super) fn quote_list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| quote(item)).collect();
    format!("[{}]", items.join(", "))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_have_units() {
        let all = Duration::ZERO..=Duration::MAX;
        let read = |text| duration(text, all.clone()).ok();
        assert_eq!(read("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(read("5 min"), Some(Duration::from_secs(300)));
        assert_eq!(read("5m"), Some(Duration::from_secs(300)));
        assert_eq!(read("7 d"), Some(Duration::from_secs(7 * 86_400)));
        for bad in ["", "5", "ms", "-5s", "1.5s", "5 weeks", "99999999999999999999s", "s5"] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_bounds() {
        assert_eq!(size("64 MiB", 0..=u64::MAX), Ok(64 * MIB));
        assert_eq!(size("1048588", 0..=u64::MAX), Ok(1_048_588));
        assert!(size("1 KiB", MIB..=GIB).is_err());
        assert!(size("2 GiB", MIB..=GIB).is_err());
        assert!(size("much", 0..=u64::MAX).is_err());
    }

    #[test]
    fn addresses_and_urls_are_checked() {
        assert!(address("127.0.0.1:0").is_ok());
        assert!(address("localhost:8080").is_err());
        assert_eq!(base_url("http://a:1/").unwrap(), "http://a:1");
        assert!(base_url("a:1").is_err());
        assert!(base_url("http://").is_err());
        assert!(host_port("node1:9090").is_ok());
        for bad in ["node1", "node1:", ":9090", "node1:0", "http://node1:9090", "a b:1"] {
            assert!(host_port(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_printed_is_read_back(bytes in 0..=u64::MAX / 2, shift in 0u32..40) {
            let bytes = (bytes >> shift) << (shift / 2);
            prop_assert_eq!(size(&show_size(bytes), 0..=u64::MAX), Ok(bytes));
            let time = Duration::from_millis(bytes / 1000);
            let all = Duration::ZERO..=Duration::MAX;
            prop_assert_eq!(duration(&show_duration(time), all), Ok(time));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "\\PC*") {
            let _ = size(&text, 0..=u64::MAX);
            let _ = duration(&text, Duration::ZERO..=Duration::MAX);
            let _ = base_url(&text);
            let _ = host_port(&text);
            let _ = list(&text, host_port);
        }
    }
}
