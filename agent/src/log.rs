//! How much is logged: a level, or levels of targets. For both programs.

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// The filter that a text means: a level, as `debug`, or levels of targets, as `info,packrun_agent::link=debug`.
///
/// # Errors
/// When it means nothing. A word alone has to be a level: a misspelt one would be a target.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let refused = |why: String| {
        format!(
            "{why}; it takes off, error, warn, info, debug or trace, for all or for a target, as `info,packrun_agent=debug`"
        )
    };
    // An empty word would be a level, and not the one that anybody means.
    let is_level = |word: &&str| !word.is_empty() && word.parse::<LevelFilter>().is_ok();
    let mut words = text.split(',').map(str::trim).filter(|word| !word.contains(['=', '[']));
    if let Some(word) = words.find(|word| !is_level(word)) {
        return Err(refused(format!("`{}` is no level", word.escape_debug())));
    }
    EnvFilter::try_new(text).map_err(|error| refused(format!("`{}`: {error}", text.escape_debug())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_taken_and_what_only_looks_like_one_is_not() {
        for taken in [
            "info",
            "OFF",
            "warn,packrun_agent::link=trace",
            "packrun_agent=debug, error",
            "[link{a=1}]=debug",
        ] {
            assert!(filter(taken).is_ok(), "{taken}");
        }
        for refused in ["inof", "", "info,", "info,=x=y", "packrun_agent=loud", "verbose,packrun_agent=info"]
        {
            assert!(filter(refused).unwrap_err().contains("error, warn, info"), "{refused}");
        }
    }
}
