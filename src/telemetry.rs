//! Logs: `tracing` events to stderr, text with colours on a terminal, one JSON object a line
//! otherwise.
//!
//! Installed once by `main`. The library only emits events, so tests and embedders choose their own
//! subscriber. Events are facts with fields and never hold a record's key, value or headers.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::util::SubscriberInitExt;

/// The filter when none is given: everything that an operator may have to act on, and milestones.
pub const DEFAULT_FILTER: &str = "info,openraft=warn";

/// What is logged, in `tracing`'s directive syntax (`info,eddyline::raft=debug`). Checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter(String);

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The text is not a filter.
    #[error("'{text}' is not a log filter: {source}")]
    Filter {
        /// What was given.
        text: String,
        /// What is wrong with it.
        source: tracing_subscriber::filter::ParseError,
    },
    /// The process has a subscriber already.
    #[error("logging is set up already")]
    AlreadySet(#[from] tracing_subscriber::util::TryInitError),
}

impl Default for Filter {
    fn default() -> Self {
        Self(DEFAULT_FILTER.to_owned())
    }
}

impl Filter {
    /// Checks a filter.
    ///
    /// # Errors
    /// [`Error::Filter`], with the directive that is wrong.
    pub fn parse(text: &str) -> Result<Self, Error> {
        directives(text)?;
        Ok(Self(text.to_owned()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// For people.
    Text,
    /// One JSON object a line, for log collectors.
    Json,
}

impl Style {
    /// Returns the style for this process's stderr.
    pub fn of_stderr() -> Self {
        if std::io::stderr().is_terminal() { Self::Text } else { Self::Json }
    }
}

/// Sends this process's logs to stderr, in the style that fits it.
///
/// # Errors
/// [`Error::AlreadySet`] on the second call.
pub fn init(filter: &Filter) -> Result<(), Error> {
    subscriber(filter, Style::of_stderr(), std::io::stderr)?.try_init()?;
    Ok(())
}

/// Makes a subscriber that writes to `writer`.
///
/// # Errors
/// [`Error::Filter`]; not for a filter that [`Filter::parse`] made.
pub fn subscriber<W>(
    filter: &Filter,
    style: Style,
    writer: W,
) -> Result<Box<dyn tracing::Subscriber + Send + Sync>, Error>
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    // Colours are left to the crate's default, which is on and heeds `NO_COLOR`.
    let builder =
        tracing_subscriber::fmt().with_env_filter(directives(filter.as_str())?).with_writer(writer);
    Ok(match style {
        Style::Text => Box::new(builder.finish()),
        Style::Json => Box::new(builder.json().flatten_event(true).finish()),
    })
}

fn directives(text: &str) -> Result<EnvFilter, Error> {
    EnvFilter::try_new(text).map_err(|source| Error::Filter { text: text.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::sync::Arc;

    use parking_lot::Mutex;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn log(style: Style, filter: &str) -> String {
        let lines = Lines::default();
        let writer = lines.clone();
        let filter = Filter::parse(filter).unwrap();
        let subscriber = subscriber(&filter, style, move || writer.clone()).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(topic = "flights", partition = 3, "segment sealed");
            tracing::debug!("not by default");
        });
        let bytes = lines.0.lock().clone();
        String::from_utf8(bytes).unwrap()
    }

    #[test]
    fn json_lines_are_objects_with_the_event_fields_at_the_top() {
        let text = log(Style::Json, DEFAULT_FILTER);
        assert_eq!(text.lines().count(), 1, "{text}");
        let line: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(line["topic"], "flights");
        assert_eq!(line["partition"], 3);
        assert_eq!(line["message"], "segment sealed");
        assert_eq!(line["level"], "INFO");
    }

    #[test]
    fn text_lines_are_for_people() {
        let text = log(Style::Text, "debug");
        assert_eq!(text.lines().count(), 2, "{text}");
        assert!(text.contains("segment sealed") && !text.starts_with('{'), "{text}");
    }

    #[test]
    fn a_wrong_filter_is_refused_with_its_text() {
        let error = Filter::parse("eddyline=loud").unwrap_err();
        assert!(error.to_string().contains("eddyline=loud"), "{error}");
    }
}
