//! Asks the kernel about one-way streams: what they left at our rules, and which way an answer would take.

use std::collections::HashMap;

use tracing::debug;

use super::{Agent, host::Host, surroundings::Observer};
use crate::{
    core::{
        flow::{
            connection::Entry,
            one_way::{Answer, Question},
            trace::Trace,
        },
        link::table::LinkTable,
        why::Route,
    },
    kernel::{
        ipvs,
        links::LinkError,
        nft::{Nft, NftError},
        route::Routes,
        xfrm,
    },
};

/// It can't be asked.
#[derive(Debug, thiserror::Error)]
enum OneWayError {
    /// The traces.
    #[error(transparent)]
    Nft(#[from] NftError),
    /// Routing.
    #[error(transparent)]
    Routes(#[from] LinkError),
}

impl<H: Host> Agent<H> {
    /// Leaves the trace of an answer for streams that go one way since, where that is as good as the answer.
    pub(super) async fn help_one_way(&mut self, mut streams: Vec<Entry>) {
        // A change that is announced and not read yet may be a rule that denies answers.
        let knows = self.observer.as_ref().is_some_and(Observer::is_current);
        let Some(offload) = self.offload.as_mut().filter(|_| knows && !streams.is_empty()) else { return };
        let Some(translates) = offload.reconciler.may_help_one_way() else { return };
        // The flowtable would translate packets that no rule translates any more.
        streams.retain(|entry| !entry.is_translated() || translates.packets_to(entry.original.destination));
        match answers(streams, &self.links).await {
            Ok(answers) if !answers.is_empty() => offload.reconciler.leave_traces(answers),
            Ok(_) => {}
            Err(error) => debug!(%error, "one-way streams stay on the normal path"),
        }
    }
}

/// Traces that may be left in the place of answers.
async fn answers(mut streams: Vec<Entry>, links: &LinkTable) -> Result<Vec<Answer>, OneWayError> {
    // Requests to a service of IPVS go by it, not by the forward path.
    if ipvs::services() > 0 {
        streams.retain(|entry| entry.original.destination == entry.reply.source);
    }
    if streams.is_empty() {
        return Ok(Vec::new());
    }
    let mut traces: HashMap<u32, Vec<Trace>> = streams.iter().map(|entry| (entry.id, Vec::new())).collect();
    Nft::open()?.traces(|id, trace| {
        if let Some(traces) = traces.get_mut(&id) {
            traces.push(trace);
        }
    })?;
    let questions: Vec<Question> =
        streams.iter().filter_map(|entry| Question::about(entry, traces.get(&entry.id)?)).collect();
    if questions.is_empty() {
        return Ok(Vec::new());
    }
    let routes = Routes::open()?;
    let mut answers = Vec::new();
    for Question { answer, routed } in questions {
        let route = routes.of(&routed, answer.input, links).await;
        // IPsec policies deny ahead of the forward hook, and routing isn't asked for them.
        let is_plain = xfrm::policies(&[routed]).is_ok_and(|policies| policies.is_empty());
        if is_plain && matches!(route, Route::Forward { output, .. } if output == answer.output) {
            answers.push(answer);
        }
    }
    Ok(answers)
}
