//! Tests that need programs which the test guest hasn't: they run on the developer's kernel only.

mod page;
mod prometheus;
