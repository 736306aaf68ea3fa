//! Flows as people and programs write them: the words of `why`, searches of `top`, and lines of the event socket.
#![no_main]

#[cfg(fuzzing)]
libfuzzer_sys::fuzz_target!(|text: &str| {
    use std::sync::Arc;

    use fastpath_agent::core::{
        flow::{expression::Expression, record::Event, search::Search},
        names::Names,
        why::FlowSpec,
    };

    drop(Search::new(text, Arc::default()));
    let _ = Expression::parse(&text.split(' ').collect::<Vec<_>>(), &Names::default());
    let mut words = text.split(' ');
    let mut word = || words.next().unwrap_or_default();
    if let Ok(spec) = FlowSpec::parse(word(), word(), word()) {
        let written = spec.tuple.to_string();
        let (protocol, ends) = written.split_once(' ').expect("a protocol");
        let (source, destination) = ends.split_once(" > ").expect("two ends");
        let again = FlowSpec::parse(protocol, source, destination).expect("what is written is a flow");
        assert_eq!(again.tuple, spec.tuple);
    }
    if let Ok(event) = serde_json::from_str::<Event>(text) {
        let written = serde_json::to_string(&event).expect("an event is JSON");
        assert_eq!(serde_json::from_str::<Event>(&written).expect("what is written is an event"), event);
    }
});
