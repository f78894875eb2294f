//! Answer: how those who waited for a sync hear of it.

use std::sync::Arc;

use super::Waiter;
use crate::error::Errno;
use crate::processor::messages::{Control, Event};
use crate::volume::request::Sink;

/// Answers all waiters; requests of hosts get a result of their own.
pub(super) fn answer(
    waiting: Vec<Waiter>,
    result: Result<(), Errno>,
    for_hosts: Result<(), Errno>,
) {
    let mut sinks: Vec<Arc<dyn Sink>> = Vec::new();
    for waiter in waiting {
        match waiter {
            Waiter::Request(request) => {
                if let Err(errno) = for_hosts {
                    request.fail(errno);
                }
                if !sinks.iter().any(|sink| Arc::ptr_eq(sink, request.sink())) {
                    sinks.push(Arc::clone(request.sink()));
                }
                request.complete();
            }
            Waiter::Call(sender) => {
                let _ = sender.send(result);
            }
            Waiter::Release { queue, share } => {
                let control = Control::Release { share, result };
                queue.push(Event::Control(Box::new(control)));
            }
        }
    }
    for sink in sinks {
        sink.kick();
    }
}
