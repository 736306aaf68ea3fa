//! `top`: reads all flows again and again and draws them full-screen. What it shows is `app`'s, how is `view`'s; this
//! file has the terminal, the clock and the signals, and gives the terminal back whatever happens.

mod app;
mod text;
mod view;

use std::{
    env,
    future::{Future, pending},
    io::{self, IsTerminal},
    pin::Pin,
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use crossterm::{
    event::{DisableMouseCapture, EnableMouseCapture, Event, EventStream},
    execute,
};
use futures_util::StreamExt;
use ratatui::DefaultTerminal;
use tokio::{
    signal::unix::{SignalKind, signal},
    task::{JoinError, spawn_blocking},
    time::{Instant, sleep_until},
};

use self::app::{App, Next, Snapshot};
use crate::{
    cli::TopArgs,
    commands::{hostname, running, runtime, why},
    core::flow::rates::{Collector, MAX_REMEMBERED, Rates, Wanted},
    kernel::{
        bpf::{BpfError, Pinned},
        flows::{self, FlowsError},
        names,
    },
};

/// Runs `top`.
pub(super) fn run(args: &TopArgs) -> anyhow::Result<ExitCode> {
    runtime()?.block_on(show(args, &hostname()))?;
    Ok(ExitCode::SUCCESS)
}

/// The live view can't go on.
#[derive(Debug, thiserror::Error)]
pub enum TopError {
    /// Standard input or output is something else.
    #[error("top needs a terminal; without one, use `fastpath-agent flows`")]
    NoTerminal,
    /// Flows can't be read, from the beginning.
    #[error(transparent)]
    Flows(#[from] FlowsError),
    /// The terminal can't be read or written.
    #[error("cannot use the terminal")]
    Terminal(#[from] io::Error),
    /// A reading panicked.
    #[error("a reading was cut short")]
    Reading(#[from] JoinError),
}

/// Shows the live view until the user quits or the process is told to end (SIGTERM, SIGINT, SIGHUP).
pub async fn show(args: &TopArgs, node: &str) -> Result<(), TopError> {
    if !io::stdin().is_terminal() || !io::stdout().is_terminal() {
        return Err(TopError::NoTerminal);
    }
    let colour = env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let mut app = App::new(node, &kernel_release(), colour, Duration::from_secs(args.interval));
    let mut stop = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()]
        .map(signal)
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    // Before the screen is taken, so that a fatal error stays visible.
    let (rates, snapshot) = read(Rates::new(MAX_REMEMBERED), args, app.wanted()).await?;
    let mut rates = Some(rates);
    app.take(Ok(snapshot?));
    let mut screen = Screen::open()?;
    let mut keys = EventStream::new();
    let mut reading: Option<Reading<'_>> = None;
    let mut asking: Option<Asking<'_>> = None;
    let (mut began, mut due) = (Instant::now(), Instant::now() + app.interval());
    loop {
        screen.terminal.draw(|frame| view::draw(frame, &mut app))?;
        let may_read = reading.is_none() && !app.paused();
        let finished = async {
            match &mut reading {
                Some(reading) => reading.await,
                None => pending().await,
            }
        };
        let answered = async {
            match &mut asking {
                Some(asking) => asking.await,
                None => pending().await,
            }
        };
        let [terminate, interrupt, hangup] = &mut stop[..] else { return Ok(()) };
        tokio::select! {
            key = keys.next() => match key {
                Some(Ok(event)) => {
                    let next = match event {
                        Event::Key(key) => app.key(key),
                        Event::Mouse(mouse) => app.mouse(mouse),
                        _ => Next::Draw, // another size
                    };
                    match next {
                        Next::Quit => return Ok(()),
                        Next::Reschedule => due = began + app.interval(),
                        Next::Ask(flow) => asking = Some(Box::pin(why::story(&args.pin_path, flow))),
                        Next::Draw => {}
                    }
                }
                Some(Err(error)) => return Err(error.into()),
                None => return Ok(()),
            },
            story = answered => {
                asking = None;
                // Unless it was closed meanwhile.
                if app.why.is_some() {
                    app.why = Some(story);
                }
            }
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => return Ok(()),
            result = finished => {
                reading = None;
                let (used, snapshot) = result?;
                // After a failure there is no telling what the last reading was.
                rates = Some(if snapshot.is_ok() { used } else { Rates::new(MAX_REMEMBERED) });
                app.take(snapshot.map_err(|error| error.to_string()));
                // However many flows there are, this takes half of a CPU at most.
                due = (began + app.interval()).max(Instant::now() + began.elapsed());
            }
            () = sleep_until(due), if may_read => {
                began = Instant::now();
                let used = rates.take().unwrap_or_else(|| Rates::new(MAX_REMEMBERED));
                reading = Some(Box::pin(read(used, args, app.wanted())));
            }
        }
    }
}

type Outcome = Result<(Rates, Result<Snapshot, FlowsError>), JoinError>;
type Reading<'a> = Pin<Box<dyn Future<Output = Outcome> + 'a>>;
/// What `why` has to say, while it watches a flow.
type Asking<'a> = Pin<Box<dyn Future<Output = String> + 'a>>;

/// One reading. The flows are read on another thread, so that keys are answered meanwhile.
async fn read(mut rates: Rates, args: &TopArgs, wanted: Wanted) -> Outcome {
    let pin_path = args.pin_path.clone();
    let node = match running::node(&pin_path).await {
        Ok(node) => node,
        Err(error) => return Ok((rates, Err(error))),
    };
    // What can't be asked isn't said on a screen that is drawn again and again: there are addresses.
    let names = Arc::new(names::read(args.names).await.0.without(&node.addresses));
    spawn_blocking(move || {
        let note = match Pinned::open(&pin_path) {
            Err(BpfError::NotPinned { path }) => {
                Some(format!("no rates: no maps in {}; is the agent running with --ebpf=tc?", path.display()))
            }
            _ => None, // any other error comes again below
        };
        let mut collector = Collector::begin(&mut rates, &node, &wanted);
        let result = flows::for_each(&pin_path, &node, |flow| collector.add(flow));
        let mut sample = collector.end();
        if note.is_some() {
            sample.interval_ns = None;
        }
        (rates, result.map(|()| Snapshot { node, sample, note, names }))
    })
    .await
}

fn kernel_release() -> String {
    nix::sys::utsname::uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default()
}

/// The terminal while the view has it.
struct Screen {
    terminal: DefaultTerminal,
}

impl Screen {
    /// Raw mode, the alternate screen, and a panic hook that ends both before it prints.
    fn open() -> io::Result<Self> {
        let terminal = ratatui::try_init().inspect_err(|_| give_back())?;
        let screen = Self { terminal };
        execute!(io::stdout(), EnableMouseCapture)?;
        Ok(screen)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        let _ = self.terminal.show_cursor();
        give_back();
    }
}

fn give_back() {
    // After a panic it was given back already: doing it twice would put the cursor on top of the panic's message. Where
    // it fails the terminal is gone.
    if crossterm::terminal::is_raw_mode_enabled().unwrap_or(true) {
        let _ = execute!(io::stdout(), DisableMouseCapture);
        let _ = ratatui::try_restore();
    }
}
