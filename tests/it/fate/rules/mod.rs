//! Rules whose verdict hangs on more than headers and connection: each decides over offloaded flows as it does over others,
//! at the latest 1.5 s after its mind changes, and leaves other flows fast.

mod changing;
mod cost;
mod every_packet;
mod headers;
mod known_moments;
mod sight;
mod unconcerned;
