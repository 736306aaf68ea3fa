//! Parts of documents that commands write, so that no number there is typed by hand.

use std::path::Path;

use anyhow::{Context, Result};
use fs_err as fs;

/// Replaces the part that `writer` (a command) writes: the text between its two marks.
pub(crate) fn write_part(path: &Path, writer: &str, part: &str) -> Result<()> {
    let text = fs::read_to_string(path)?;
    let written = between(&text, writer, part)
        .with_context(|| format!("{} lacks the lines between which `{writer}` writes", path.display()))?;
    Ok(fs::write(path, written)?)
}

/// `text` with the part between the marks replaced.
fn between(text: &str, writer: &str, part: &str) -> Option<String> {
    let [begin, end] = ["begin", "end"].map(|word| format!("<!-- written by `{writer}`: {word} -->\n"));
    let (head, rest) = text.split_once(&begin)?;
    let (_, tail) = rest.split_once(&end)?;
    Some(format!("{head}{begin}{part}{end}{tail}"))
}

#[cfg(test)]
mod tests {
    use super::between;

    #[test]
    fn only_the_part_between_the_marks_is_replaced() {
        let text = |part: &str| {
            format!("head\n<!-- written by `x`: begin -->\n{part}<!-- written by `x`: end -->\ntail\n")
        };
        assert_eq!(between(&text("old\n"), "x", "new\n"), Some(text("new\n")));
        assert_eq!(between(&text("old\n"), "y", "new\n"), None);
        assert_eq!(between("no marks", "x", "new\n"), None);
    }
}
