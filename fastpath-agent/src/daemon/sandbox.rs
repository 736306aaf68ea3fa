//! Gives up what the agent no longer needs (`kernel/confine`), and says what came of it. An agent that can't goes on: the node has
//! had it with these privileges before.

use tracing::{debug, info, warn};

use crate::{
    cli::OnOff,
    config::Config,
    core::export::target::{Target, Transport},
    kernel::confine::{self, Files, Restriction},
};

/// Before any thread is started.
pub(super) fn before_start(config: &Config) {
    if config.sandbox == OnOff::On
        && let Err(error) = confine::before_start()
    {
        warn!("{error}");
    }
}

/// When programs are loaded, and everything that it listens at is open.
pub(super) fn when_started(config: &Config) {
    if config.sandbox == OnOff::Off || config.once {
        return;
    }
    let (restriction, failures) = confine::when_started(&files(config));
    let filtered = failures.is_empty();
    for error in failures {
        warn!("{error}");
    }
    let files = match restriction {
        Ok(Restriction::Full) => "its own",
        Ok(Restriction::Part) => "its own, as far as this kernel can tell",
        Ok(Restriction::None) => "all: this kernel has no Landlock",
        Err(error) => {
            warn!("{error}");
            "all"
        }
    };
    if filtered {
        info!(capabilities = "net_admin", files, "privileges given up");
    }
    let Some(file) = &config.rules.exclude.file else { return };
    match confine::readable(file) {
        Ok(()) => debug!(file = %file.display(), "can be read again"),
        Err(error) => warn!(
            "exclusions can't be read again: {}: {error}; make it readable for root without CAP_DAC_OVERRIDE, or start the agent \
             with --sandbox=off",
            file.display()
        ),
    }
}

/// What a running agent reads and writes.
fn files(config: &Config) -> Files {
    let mut files = Files::of_the_kernel()
        .and_directory(&config.pin_path)
        .and_directory(&config.run_dir)
        .and_its_end(&config.run_dir);
    if let Some(Target { transport: Transport::Tcp, port, .. }) =
        config.export.as_ref().map(|export| &export.target)
    {
        files = files.and_connections_to(*port);
    }
    if config.cleanup_on_exit {
        files = files.and_its_end(&config.pin_path);
    }
    let read_again = [&config.rules.exclude.file, &config.mode.file];
    read_again.into_iter().flatten().fold(files, |files, file| files.and_file(file))
}
