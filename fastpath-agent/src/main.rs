//! Entry point of the agent: parses, runs, and turns errors into one line and an exit code.

use std::process::ExitCode;

use fastpath_agent::{
    commands,
    config::BadValue,
    core::{flow::expression::BadExpression, why::BadFlow},
    invocation::{Invocation, InvocationError},
    logging,
};

/// Exit code for a wrong flag or value (`EX_USAGE`, sysexits.h).
const EX_USAGE: u8 = 64;

fn main() -> ExitCode {
    let invocation = match Invocation::parse(std::env::args_os()) {
        Ok(invocation) => invocation,
        Err(InvocationError::CommandLine(error)) => {
            let _ = error.print();
            return if error.use_stderr() { ExitCode::from(EX_USAGE) } else { ExitCode::SUCCESS };
        }
        Err(InvocationError::File(error)) => {
            eprintln!("error: {error}");
            return ExitCode::from(EX_USAGE);
        }
    };
    match commands::run(&invocation.cli) {
        Ok(code) => code,
        Err(error) => {
            let place = error.downcast_ref().and_then(|bad| invocation.place(bad));
            let place = place.map(|place| format!("{place}: ")).unwrap_or_default();
            logging::say(&format!("error: {place}{}\n", one_line(&error)));
            if error.is::<BadValue>() || error.is::<BadFlow>() || error.is::<BadExpression>() {
                eprintln!("\nFor more information, try '--help'.");
                return ExitCode::from(EX_USAGE);
            }
            ExitCode::FAILURE
        }
    }
}

/// An error with its causes; a cause that the error's own text has already isn't said again.
fn one_line(error: &anyhow::Error) -> String {
    error.chain().skip(1).map(ToString::to_string).fold(error.to_string(), |line, cause| {
        if line.contains(&cause) { line } else { format!("{line}: {cause}") }
    })
}
