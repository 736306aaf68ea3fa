//! The same fate with a fast path and without: what would be delivered is delivered, what would be dropped is dropped, at the
//! latest 1.5 s after a change. A file for each group of cases; all of them are tables, so one more case is one more row.

mod asymmetric;
mod bridged;
mod ct_timeout;
mod denied;
mod egress;
mod full_traces;
mod ingress;
mod ipvs;
mod policy_routes;
mod routes;
mod rules;
mod saved;
mod software;
mod stays_fast;
