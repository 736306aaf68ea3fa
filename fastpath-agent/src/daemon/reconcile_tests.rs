//! The reconciler against a ruleset in memory: convergence, culprits, other programs' changes, a failure at every step.

use std::io;

use proptest::prelude::*;

use super::*;
use crate::{
    core::{
        link::table::LinkEvent,
        model::{FLOWTABLE, Link, test_link},
        ruleset::{
            chain::OwnChain,
            expr::Direction,
            observed::{ObservedFlowtable, ObservedTable, Owner},
            sets::OwnSet,
        },
    },
    daemon::cleanup::{TableCleanup, remove_table},
    kernel::{fake::FakeRuleset, nft::Rejection},
};

fn link(index: u32) -> Link {
    Link { index: IfIndex(index), ..test_link(&format!("eth{index}")) }
}

fn policy() -> Policy {
    Policy { spare_ipsec: true, ..Policy::default() }
}

/// A table of the same name as another program makes it.
fn make_foreign(table: &mut ObservedTable) {
    table.owner = Owner::Foreign;
    table.chains.retain(|chain| chain.name == OwnChain::Base.name());
}

/// A reconciler with the links that it is handed.
struct Node {
    inner: Reconciler<FakeRuleset>,
    links: LinkTable,
}

impl std::ops::Deref for Node {
    type Target = Reconciler<FakeRuleset>;
    fn deref(&self) -> &Self::Target {
        &self.inner
    }
}

impl std::ops::DerefMut for Node {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.inner
    }
}

impl Node {
    fn reconcile(&mut self, trigger: Trigger) -> Result<Report, NftError> {
        self.inner.reconcile(trigger, &self.links)
    }

    /// It is announced that another program changed our table.
    fn notice(&mut self) {
        self.inner.touched();
    }

    fn link_event(&mut self, event: LinkEvent) -> bool {
        let change = self.links.apply(event);
        change.iter().for_each(|c| self.inner.link_changed(c));
        change.is_some()
    }
}

fn reconciler(links: impl IntoIterator<Item = u32> + Clone) -> Node {
    let kernel = FakeRuleset::new(links.clone().into_iter().map(|i| link(i).name));
    Node {
        inner: Reconciler::new(kernel, policy(), ForeignTable::Refuse),
        links: links.into_iter().map(link).collect(),
    }
}

fn devices(reconciler: &Node) -> Vec<String> {
    let table = reconciler.ruleset.table.as_ref().unwrap();
    let flowtable = table.flowtables.iter().find(|f| f.name == FLOWTABLE).unwrap();
    flowtable.devices.iter().flatten().map(ToString::to_string).collect()
}

#[test]
fn the_first_reconcile_installs_and_the_second_writes_nothing() {
    let mut r = reconciler(1..=3);
    let report = r.reconcile(Trigger::Start).unwrap();
    assert_eq!(report, Report { outcome: Outcome::Done, standing: Standing::Right, commits: 1 });
    assert_eq!(devices(&r), ["eth1", "eth2", "eth3"]);
    for trigger in [Trigger::Links, Trigger::Ruleset, Trigger::SafetyNet, Trigger::Overrun] {
        assert_eq!(r.reconcile(trigger).unwrap().commits, 0, "{trigger}");
    }
}

#[test]
fn a_new_link_is_one_transaction_about_that_link() {
    let mut r = reconciler(1..=300);
    r.reconcile(Trigger::Start).unwrap();
    r.inner.ruleset.devices.insert(link(301).name);
    assert!(r.link_event(LinkEvent::Changed(link(301))));
    assert!(!r.link_event(LinkEvent::Changed(link(301))), "nothing new in it");
    r.reconcile(Trigger::Links).unwrap();
    assert_eq!(
        r.ruleset.commits.last().unwrap(),
        &[Op::AddDevices(vec![link(301).name]), Op::AddIndices(vec![IfIndex(301)])]
    );
}

#[test]
fn a_link_that_goes_away_leaves_only_its_index_behind() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    r.ruleset.remove_device(&link(2).name);
    assert!(r.link_event(LinkEvent::Gone(IfIndex(2))));
    r.reconcile(Trigger::Links).unwrap();
    assert_eq!(r.ruleset.commits.last().unwrap(), &[Op::RemoveIndices(vec![IfIndex(2)])]);
    assert!(!r.link_event(LinkEvent::Gone(IfIndex(2))));
}

#[test]
fn a_vanished_device_in_a_large_transaction_is_left_out_and_the_others_are_served() {
    let mut r = reconciler(1..=300);
    r.ruleset.devices.remove(&link(150).name);
    r.ruleset.refusing.insert(link(7).name);
    let report = r.reconcile(Trigger::Start).unwrap();
    assert_eq!(report.standing, Standing::Right);
    assert_eq!(devices(&r).len(), 298);
    assert_eq!(r.refused.keys().copied().collect::<Vec<_>>(), [IfIndex(7), IfIndex(150)]);

    r.ruleset.refusing.clear();
    assert!(r.link_event(LinkEvent::Changed(Link { mtu: 9000, ..link(7) })));
    r.reconcile(Trigger::Links).unwrap();
    assert!(devices(&r).contains(&"eth7".to_owned()), "tried again when it changed");
}

#[test]
fn a_refused_device_is_tried_again_when_others_objects_in_our_table_change() {
    let mut r = reconciler(1..=2);
    r.ruleset.refusing.insert(link(2).name);
    r.ruleset.table = None;
    r.reconcile(Trigger::Start).unwrap();
    r.ruleset.disturb(|t| {
        t.as_mut().unwrap().flowtables.push(ObservedFlowtable {
            name: "other".to_owned(),
            priority: 1,
            counter: false,
            hw_offload: false,
            devices: Some([link(2).name].into()),
        });
    });
    r.notice();
    r.reconcile(Trigger::Ruleset).unwrap();
    r.ruleset.refusing.clear();
    r.ruleset.disturb(|t| t.as_mut().unwrap().flowtables.retain(|f| f.name != "other"));
    r.notice();
    r.reconcile(Trigger::Ruleset).unwrap();
    assert_eq!(devices(&r), ["eth1", "eth2"]);
}

#[test]
fn hardware_offload_falls_back_to_software_where_an_interface_cannot() {
    let mut r = reconciler(1..=3);
    r.policy.hw_offload = true;
    // The fake refuses a device whatever the flowtable's flags, so it has to stop refusing with the fall-back.
    r.ruleset.refusing.insert(link(2).name);
    let report = r.reconcile(Trigger::Start).unwrap();
    assert_eq!(report.standing, Standing::Right);
    let table = r.ruleset.table.as_ref().unwrap();
    assert!(!table.flowtables[0].hw_offload);
    assert_eq!(r.refused.len(), 1, "in software the refusal is the device's own");
}

#[test]
fn what_another_program_deleted_is_put_back_and_counted_as_a_repair() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    let right = r.ruleset.table.clone();
    let harm: [fn(&mut Option<crate::core::ruleset::observed::ObservedTable>); 4] = [
        |t| *t = None,
        |t| t.as_mut().unwrap().chains.clear(),
        |t| t.as_mut().unwrap().chains[0].rules.clear(),
        |t| t.as_mut().unwrap().sets.iter_mut().for_each(|s| s.elements.clear()),
    ];
    for harm in harm {
        r.ruleset.disturb(harm);
        r.notice();
        let report = r.reconcile(Trigger::Ruleset).unwrap();
        assert_eq!(report.outcome, Outcome::Repaired);
        let handles_away = |t: &Option<crate::core::ruleset::observed::ObservedTable>| {
            let mut t = t.clone().unwrap();
            t.chains.iter_mut().flat_map(|c| &mut c.rules).for_each(|rule| rule.handle = 0);
            t.sets.iter_mut().for_each(|set| set.handle = 0);
            t.sets.sort_by(|a, b| a.name.cmp(&b.name));
            t
        };
        assert_eq!(handles_away(&r.ruleset.table), handles_away(&right));
    }
}

/// What all waiting generations changed comes with the first of them, which may be our own.
#[test]
fn a_deletion_that_is_heard_of_early_is_mended() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    let own = Generation(r.ruleset.generation);
    r.ruleset.disturb(|t| *t = None);
    // With our own generation comes what the next one changed, and with that one nothing is left.
    r.notice();
    r.inner.passed(own.next());
    assert_eq!(r.reconcile(Trigger::Ruleset).unwrap().outcome, Outcome::Repaired);
    assert!(r.ruleset.table.is_some());
}

#[test]
fn a_foreign_table_is_left_alone_until_it_goes_away() {
    let mut r = reconciler(1..=3);
    let mut donor = reconciler(1..=1);
    donor.reconcile(Trigger::Start).unwrap();
    let mut foreign = donor.ruleset.table.clone().unwrap();
    make_foreign(&mut foreign);
    r.ruleset.disturb(|t| *t = Some(foreign.clone()));

    let report = r.reconcile(Trigger::Start).unwrap();
    assert_eq!((report.standing, report.commits), (Standing::Foreign, 0));
    assert_eq!(r.ruleset.table, Some(foreign));
    assert_eq!(remove_table(&mut r.inner.ruleset).unwrap(), TableCleanup::Foreign);
    assert!(r.ruleset.table.is_some(), "removing the agent's table leaves the other one");

    r.ruleset.disturb(|t| *t = None);
    r.notice();
    let report = r.reconcile(Trigger::Ruleset).unwrap();
    assert_eq!((report.standing, report.outcome), (Standing::Right, Outcome::Done));
}

#[test]
fn a_failure_at_any_step_ends_well_in_the_next_reconcile() {
    for failing in 0..4 {
        for stale in [true, false] {
            let mut r = reconciler(1..=300);
            r.ruleset.refusing.insert(link(9).name);
            let error = || {
                if stale {
                    CommitError::Stale
                } else {
                    CommitError::Rejected(vec![Rejection {
                        index: 0,
                        source: io::Error::from_raw_os_error(libc::ENOMEM),
                        message: None,
                        device: None,
                    }])
                }
            };
            r.ruleset.script = (0..failing).map(|_| None).chain([Some(error())]).collect();
            let first = r.reconcile(Trigger::Start).unwrap();
            if first.standing == Standing::Wrong {
                assert_eq!(first.outcome, Outcome::Failed);
            }
            let report = r.reconcile(Trigger::Retry).unwrap();
            assert_eq!(report.standing, Standing::Right, "step {failing}, stale {stale}");
            assert_eq!(devices(&r).len(), 299);
        }
    }
}

#[test]
fn a_renamed_link_is_observed_anew() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    // The kernel shows the new name by itself.
    let new = IfName::new("wan").unwrap();
    r.ruleset.devices.insert(new.clone());
    for flowtable in &mut r.ruleset.table.as_mut().unwrap().flowtables {
        let devices = flowtable.devices.as_mut().unwrap();
        devices.remove(&link(2).name);
        devices.insert(new.clone());
    }
    r.link_event(LinkEvent::Changed(Link { name: new, ..link(2) }));
    assert_eq!(r.reconcile(Trigger::Links).unwrap().commits, 0);
}

#[test]
fn threshold_zero_removes_our_table() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    r.policy.threshold = 0;
    r.distrust();
    let report = r.reconcile(Trigger::Start).unwrap();
    assert_eq!((report.standing, report.commits), (Standing::Right, 1));
    assert_eq!(r.ruleset.table, None);
}

#[test]
fn the_set_holds_the_indices_of_the_devices() {
    let mut r = reconciler([4, 8]);
    r.reconcile(Trigger::Start).unwrap();
    let table = r.ruleset.table.as_ref().unwrap();
    let set = table.set(OwnSet::Devices).unwrap();
    assert_eq!(set.elements, [IfIndex(4), IfIndex(8)].into());
}

#[test]
fn assisted_connections_are_listed_with_the_rule_in_one_transaction() {
    let mut r = reconciler(1..=2);
    r.reconcile(Trigger::Start).unwrap();
    r.assist(Wanted { rule: true, ids: vec![7, 8] });
    r.reconcile(Trigger::Assist).unwrap();
    let ops = r.ruleset.commits.last().unwrap().clone();
    assert_eq!(ops.last(), Some(&Op::AddAssisted { ids: vec![7, 8], timeout_ms: LISTED_MS }));
    assert!(ops.contains(&Op::AddSet(OwnSet::Assist)), "{ops:?}");
    // More of them: nothing but that, and it is no repair.
    r.assist(Wanted { rule: true, ids: vec![9] });
    let report = r.reconcile(Trigger::Assist).unwrap();
    assert_eq!((report.outcome, report.commits), (Outcome::Done, 1));
    assert_eq!(r.ruleset.commits.last().unwrap(), &[Op::AddAssisted { ids: vec![9], timeout_ms: LISTED_MS }]);
    assert_eq!(r.reconcile(Trigger::SafetyNet).unwrap().commits, 0, "told once");
    // No more of them: the table is as before.
    r.assist(Wanted { rule: false, ids: vec![] });
    r.reconcile(Trigger::Assist).unwrap();
    assert!(r.ruleset.commits.last().unwrap().contains(&Op::DeleteSet(OwnSet::Assist)));
    assert_eq!(r.reconcile(Trigger::SafetyNet).unwrap().commits, 0);
}

#[test]
fn assisted_connections_survive_a_failed_transaction_and_are_dropped_with_a_foreign_table() {
    let mut r = reconciler(1..=2);
    r.reconcile(Trigger::Start).unwrap();
    r.assist(Wanted { rule: true, ids: vec![7] });
    r.inner.ruleset.script = vec![Some(CommitError::Stale)];
    r.reconcile(Trigger::Assist).unwrap();
    let listed = |op: &Op| matches!(op, Op::AddAssisted { ids, .. } if *ids == [7]);
    assert!(r.ruleset.commits.last().unwrap().iter().any(listed));

    r.assist(Wanted { rule: true, ids: vec![8] });
    r.inner.ruleset.disturb(|table| make_foreign(table.as_mut().unwrap()));
    r.notice();
    assert_eq!(r.reconcile(Trigger::Ruleset).unwrap().standing, Standing::Foreign);
    assert!(r.assisted.is_empty());
}

/// The kernel's rule offloads one more flow.
fn offload_one(r: &mut Node) {
    let table = r.ruleset.table.as_mut().unwrap();
    let rules = table.chains.iter_mut().flat_map(|chain| &mut chain.rules);
    rules.filter_map(|rule| rule.counter.as_mut()).for_each(|counter| counter.packets += 1);
}

#[test]
fn the_flowtable_is_emptied_only_when_a_flow_has_entered_it() {
    let mut r = reconciler(1..=3);
    assert_eq!(r.empty().unwrap(), Emptied::Absent);
    r.reconcile(Trigger::Start).unwrap();
    for _ in 0..2 {
        offload_one(&mut r);
        assert!(matches!(r.empty().unwrap(), Emptied::Done { .. }));
        assert_eq!(r.empty().unwrap(), Emptied::NothingNew);
    }
    // Another program's change of our table may have reset the counter.
    r.ruleset.disturb(|_| {});
    r.notice();
    assert!(matches!(r.empty().unwrap(), Emptied::Done { .. }));
    assert_eq!(r.reconcile(Trigger::Ruleset).unwrap().commits, 0, "nothing has to be put back");
    assert_eq!(devices(&r), ["eth1", "eth2", "eth3"]);
}

#[test]
fn traces_are_left_after_a_revalidation_too() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    let answer = Answer { id: 7, direction: Direction::Reply, input: IfIndex(1), output: IfIndex(2) };
    for _ in 0..2 {
        offload_one(&mut r);
        assert!(matches!(r.empty().unwrap(), Emptied::Done { .. }));
        let before = r.ruleset.commits.len();
        r.leave_traces(vec![answer]);
        r.leave_traces(vec![answer]);
        assert_eq!(
            r.ruleset.commits[before..],
            [[Op::AddTraces(vec![answer])], [Op::AddTraces(vec![answer])]]
        );
    }
    assert_eq!(r.reconcile(Trigger::Ruleset).unwrap().commits, 0, "nothing has to be put back");
}

#[test]
fn emptying_is_tried_again_when_others_were_faster_and_fails_in_the_end() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    r.ruleset.script = vec![Some(CommitError::Stale), Some(CommitError::Stale)];
    assert!(matches!(r.empty().unwrap(), Emptied::Done { .. }));
    offload_one(&mut r);
    r.ruleset.script = (0..100).map(|_| Some(CommitError::Stale)).collect();
    assert!(matches!(r.empty(), Err(EmptyError::Commit(CommitError::Stale))));
    r.ruleset.script.clear();
    make_foreign(r.inner.ruleset.table.as_mut().unwrap());
    assert_eq!(r.empty().unwrap(), Emptied::Absent, "another program's table is left alone");
}

#[test]
fn changes_elsewhere_leave_what_is_known_of_our_table() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    for _ in 0..3 {
        r.ruleset.generation += 1;
        let generation = Generation(r.ruleset.generation);
        r.inner.passed(generation);
        assert_eq!(r.cache.as_ref().map(|cache| cache.generation), Some(generation));
    }
    // One that wasn't announced yet makes the kernel's state unknown.
    r.ruleset.generation += 2;
    let generation = Generation(r.ruleset.generation);
    r.inner.passed(generation);
    assert_ne!(r.cache.as_ref().map(|cache| cache.generation), Some(generation));
}

#[test]
fn what_was_revoked_by_hand_stays() {
    let mut r = reconciler(1..=3);
    r.reconcile(Trigger::Start).unwrap();
    let ops = crate::core::ruleset::empty::revoke(r.ruleset.table.as_ref().unwrap(), vec![7], 1000).unwrap();
    let generation = Generation(r.ruleset.generation);
    r.ruleset.commit(&ops, generation).unwrap();
    r.notice();
    for trigger in [Trigger::Ruleset, Trigger::SafetyNet] {
        assert_eq!(r.reconcile(trigger).unwrap().commits, 0, "{trigger}");
    }
    r.ruleset.devices.insert(link(4).name);
    r.link_event(LinkEvent::Changed(link(4)));
    r.reconcile(Trigger::Links).unwrap();
    assert_eq!(
        r.ruleset.commits.last().unwrap(),
        &[Op::AddDevices(vec![link(4).name]), Op::AddIndices(vec![IfIndex(4)])]
    );
}

/// A bridge, ports of it and of something else, links that are left out: up or down.
fn some_link(index: u32, (up, port): (bool, bool)) -> Link {
    Link {
        admin_up: up,
        kind: Some(if index <= 2 { "bridge" } else { "veth" }.to_owned()),
        master: port.then_some(IfIndex(1 + index % 3)),
        ..link(index)
    }
}

proptest! {
    /// Following changes of links one by one gives the same table as comparing all links.
    #[test]
    fn following_links_is_as_good_as_looking_at_all(
        events in prop::collection::vec((1u32..12, prop::option::of(any::<(bool, bool)>()), any::<bool>()), 1..60),
        hw_offload in any::<bool>(),
    ) {
        let mut r = reconciler(5..=8);
        r.inner.policy.hw_offload = hw_offload;
        r.reconcile(Trigger::Start).unwrap();
        for (index, state, reconciles) in events {
            match state {
                Some(state) => {
                    r.inner.ruleset.devices.insert(link(index).name);
                    r.link_event(LinkEvent::Changed(some_link(index, state)));
                }
                None => {
                    r.inner.ruleset.remove_device(&link(index).name);
                    r.link_event(LinkEvent::Gone(IfIndex(index)));
                }
            }
            if !reconciles {
                continue;
            }
            let report = r.reconcile(Trigger::Links).unwrap();
            prop_assert_eq!(report.standing, Standing::Right);
            let wanted = desired::desired(&r.policy, r.links.iter(), &r.refused);
            prop_assert_eq!(r.achieved.as_ref(), Some(&wanted));
            let observed = r.inner.ruleset.observe().unwrap();
            prop_assert_eq!(diff::diff(&wanted, &observed, ForeignTable::Refuse), Decision::Apply(Vec::new()));
            prop_assert_eq!(r.cache.as_ref(), Some(&observed));
        }
    }
}
