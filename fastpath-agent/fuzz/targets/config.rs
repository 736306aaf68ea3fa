//! Flags and the configuration file. Lines that begin with `--` are flags, the others are the file.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|text: &str| {
    use std::{fs, path::Path, process, sync::LazyLock};

    use fastpath_agent::{config::Config, invocation::Invocation};

    static FILE: LazyLock<std::path::PathBuf> =
        LazyLock::new(|| std::env::temp_dir().join(format!("fastpath-fuzz-{}.toml", process::id())));
    let mut arguments = vec!["fastpath-agent".to_owned(), "run".to_owned(), "--config=/file".to_owned()];
    let (flags, lines): (Vec<_>, Vec<_>) = text.lines().partition(|line| line.starts_with("--"));
    arguments.extend(flags.into_iter().filter(|flag| !flag.starts_with("--config")).map(str::to_owned));
    fs::write(&*FILE, lines.join("\n")).expect("a file for the configuration");
    // No other file is read.
    let seen = |path: &Path| if path == Path::new("/file") { FILE.clone() } else { "/dev/null".into() };
    match Invocation::of_another(&arguments, &[], &seen) {
        Ok(invocation) => {
            if let Err(bad) =
                Config::new(invocation.cli.agent().expect("the agent's flags"), "node".to_owned())
            {
                assert!(!bad.to_string().contains('\n'), "an error is one line: {bad}");
            }
        }
        Err(error) => drop(error.to_string()),
    }
});
