//! Names as the kernel has them (nearly any bytes) as text that does nothing to a terminal, a log, a label or a script, and back.
//! Names are made printable where they come in: different names stay different, so that what is printable is compared, kept and
//! shown; only what goes to the kernel again is the name itself.

use std::borrow::Cow;

/// The name as printable text. Letters and digits of all scripts, spaces and ASCII's signs stay what they are, but for `\` and `"`.
/// `\\` is a backslash, `\x1b` a byte, `\u{202e}` any other character.
pub fn printable(name: &[u8]) -> Cow<'_, str> {
    if let Ok(text) = str::from_utf8(name)
        && text.chars().all(stays)
    {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(2 * name.len());
    for chunk in name.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => shown.push_str(r"\\"),
                c if stays(c) => shown.push(c),
                c if c.is_ascii() => shown.push_str(&format!(r"\x{:02x}", u32::from(c))),
                c => shown.push_str(&format!(r"\u{{{:x}}}", u32::from(c))),
            }
        }
        chunk.invalid().iter().for_each(|byte| shown.push_str(&format!(r"\x{byte:02x}")));
    }
    Cow::Owned(shown)
}

/// The name that is shown so; `None` for text that no name is shown as.
pub fn name(shown: &str) -> Option<Cow<'_, [u8]>> {
    if !shown.contains('\\') {
        return Some(Cow::Borrowed(shown.as_bytes()));
    }
    let mut name = Vec::with_capacity(shown.len());
    let mut rest = shown;
    while let Some((before, escape)) = rest.split_once('\\') {
        name.extend(before.bytes());
        rest = if let Some(rest) = escape.strip_prefix('\\') {
            name.push(b'\\');
            rest
        } else if let Some(hex) = escape.strip_prefix('x') {
            name.push(u8::from_str_radix(hex.get(..2)?, 16).ok()?);
            &hex[2..]
        } else {
            let (hex, rest) = escape.strip_prefix("u{")?.split_once('}')?;
            let c = char::from_u32(u32::from_str_radix(hex, 16).ok()?)?;
            name.extend(c.encode_utf8(&mut [0; 4]).bytes());
            rest
        };
    }
    name.extend(rest.bytes());
    Some(Cow::Owned(name))
}

/// Whether what was typed means the name that is shown so: as it is shown, or as it is.
pub fn means(written: &str, shown: &str) -> bool {
    written == shown || printable(written.as_bytes()) == shown
}

/// No controls (C0, C1), no marks that turn the direction of writing, nothing that can't be seen; and nothing that ends a quoted
/// text.
fn stays(c: char) -> bool {
    const INVISIBLE_LETTERS: [char; 4] = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}'];
    match c {
        '\\' | '"' => false,
        c if c.is_ascii() => c == ' ' || c.is_ascii_graphic(),
        c => c.is_alphanumeric() && !INVISIBLE_LETTERS.contains(&c),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ordinary_names_are_shown_as_they_are() {
        for text in
            ["eth0", "cali1234@if7", "KUBE-FORWARD", "grün", "网络", "a 'comment' of two: {x}; $y `z`"]
        {
            assert!(matches!(printable(text.as_bytes()), Cow::Borrowed(shown) if shown == text), "{text}");
        }
    }

    #[test]
    fn what_could_do_harm_is_written_out() {
        for (name, shown) in [
            (&b"p\xff\xfe"[..], r"p\xff\xfe"),
            (b"\x1b[31m\n\t\0\x7f", r"\x1b[31m\x0a\x09\x00\x7f"),
            (br#"a\b"c"#, r"a\\b\x22c"),
            (b"\xc2\x9b31m", r"\u{9b}31m"),
            (b"\x9b31m", r"\x9b31m"),
            (
                "\u{202e}x\u{2066}\u{200b}\u{2028}\u{feff}\u{3164}".as_bytes(),
                r"\u{202e}x\u{2066}\u{200b}\u{2028}\u{feff}\u{3164}",
            ),
        ] {
            assert_eq!(printable(name), shown);
            assert_eq!(self::name(shown).as_deref(), Some(name));
        }
    }

    #[test]
    fn what_is_no_escape_is_no_name() {
        for shown in [r"\", r"\x1", r"\xg0", r"\u{110000}", r"\u{41", r"\n", r"\xä0"] {
            assert_eq!(name(shown), None, "{shown}");
        }
    }

    #[test]
    fn a_name_may_be_written_as_it_is_or_as_it_is_shown() {
        assert!(means(r#"say "hi""#, r"say \x22hi\x22") && means(r"say \x22hi\x22", r"say \x22hi\x22"));
        assert!(!means("say hi", r"say \x22hi\x22"));
    }

    proptest! {
        #[test]
        fn any_name_is_printable_and_comes_back(bytes: Vec<u8>) {
            let shown = printable(&bytes);
            prop_assert!(shown.chars().all(|c| stays(c) || c == '\\'), "{shown:?}");
            let back = name(&shown);
            prop_assert_eq!(back.as_deref(), Some(&bytes[..]));
        }
    }
}
