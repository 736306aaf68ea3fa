//! Numbers and durations in few characters.

/// Three digits and a decimal prefix: 0, 0.3, 12, 999, 1.23k, 45.6M; five characters at most up to 999T.
pub(super) fn short(value: f64) -> String {
    if value < 0.05 {
        return "0".to_owned();
    }
    if value < 9.95 {
        return format!("{value:.1}");
    }
    if value < 999.5 {
        return format!("{value:.0}");
    }
    let mut scaled = value;
    let mut prefix = ' ';
    for next in ['k', 'M', 'G', 'T'] {
        if scaled < 999.5 {
            break;
        }
        scaled /= 1000.0;
        prefix = next;
    }
    match scaled {
        s if s < 9.995 => format!("{s:.2}{prefix}"),
        s if s < 99.95 => format!("{s:.1}{prefix}"),
        s => format!("{s:.0}{prefix}"),
    }
}

/// [`short`], or a dash for what isn't known.
pub(super) fn known(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), short)
}

/// A share from 0 to 1 in percent, or a dash. Never rounded to all or nothing.
pub(super) fn percent(share: Option<f64>) -> String {
    match share {
        None => "-".to_owned(),
        Some(share) if share > 0.0 && share < 0.01 => "<1%".to_owned(),
        Some(share) if share > 0.99 && share < 1.0 => ">99%".to_owned(),
        Some(share) => format!("{:.0}%", share * 100.0),
    }
}

/// A duration in ns, in at most 4 characters up to 999 days.
pub(super) fn duration(ns: u64) -> String {
    match ns / 1_000_000_000 {
        s @ 0..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_share_is_rounded_neither_to_all_nor_to_nothing() {
        let shares = [None, Some(0.0), Some(0.001), Some(0.5), Some(0.999), Some(1.0)];
        assert_eq!(shares.map(percent), ["-", "0%", "<1%", "50%", ">99%", "100%"]);
    }

    #[test]
    fn durations_are_short() {
        let seconds = [0, 119, 120, 7199, 7200, 172_800];
        assert_eq!(seconds.map(|s| duration(s * 1_000_000_000)), ["0s", "119s", "2m", "119m", "2h", "2d"]);
    }

    #[test]
    fn numbers_are_short() {
        let cases = [
            (0.0, "0"),
            (0.3, "0.3"),
            (9.99, "10"),
            (12.4, "12"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1234.0, "1.23k"),
            (45_600_000.0, "45.6M"),
            (999_900.0, "1.00M"),
            (1e11, "100G"),
        ];
        for (value, text) in cases {
            assert_eq!(short(value), text, "{value}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_wider_than_its_place(value in 0.0..999e12f64, ns: u64) {
            prop_assert!(short(value).len() <= 5);
            prop_assert!(duration(ns % (999 * 86_400_000_000_000)).len() <= 4);
        }
    }
}
