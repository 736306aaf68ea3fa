//! The loop's answers to clients of the HTTP port.

use super::{Agent, host::Host, question::Question};

impl<H: Host> Agent<H> {
    /// Answers a client of the HTTP port, which may have gone meanwhile.
    pub(super) fn answer(&mut self, question: Question) {
        match question {
            Question::Alive(answer) => drop(answer.send(())),
            Question::Ready(answer) => drop(answer.send(self.ready())),
            Question::Metrics(answer) => drop(answer.send(self.asked().map(Box::new))),
            Question::Page(answer) => drop(answer.send(self.seen().map(Box::new))),
            Question::Flags(answer) => drop(answer.send(Box::new(self.config.clone()))),
        }
    }
}
