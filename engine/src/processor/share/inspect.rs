//! Inspect: what a share has, counted by the state that its parts are in (H2). See [`crate::processor::inspect`].

use crate::processor::inspect::{Group, Handed, ShareLook, find_or_add};
use crate::processor::share::Share;

impl Share {
    /// What it has, but for what waits for its turn.
    pub(in crate::processor) fn look(&self) -> ShareLook {
        let mut look = ShareLook {
            share: self.number,
            overlap: Group::of(self.waiting.iter()),
            held: Group::of(self.held.iter()),
            starved: Group::of(self.without_space.iter()),
            cut_since_ns: self.stopped_at,
            checkpointing: self.checkpointing,
            leaving: self.leaving,
            ..ShareLook::default()
        };
        self.settling.iter().for_each(|(_, since, _)| look.settling.add(*since));
        for (kind, part) in self.backlog.iter() {
            let same = |(name, _): &(&str, Group)| *name == kind.name();
            let new = || (kind.name(), Group::default());
            find_or_add(&mut look.backlog, same, new).1.add(part.since);
        }
        for (reserved, out) in self.out.iter() {
            if reserved {
                look.reserved.add(out.since);
            }
            if out.given_up {
                look.given_up.add(out.since);
            }
            let kind = out.kind.map_or("own", |kind| kind.name());
            let place = out.errand.place();
            let same = |handed: &Handed| handed.kind == kind && handed.place == place;
            let new = || Handed { kind, place, group: Group::default() };
            find_or_add(&mut look.handed, same, new).group.add(out.since);
        }
        look
    }
}
