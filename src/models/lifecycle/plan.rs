//! What is to be done about models, by what lies there and what serves.
//!
//! Plain data, without a disk and without a clock: who calls says what was found, and performs the steps.
//!
//! Invariant: nothing is loaded whose files may still be written, unless somebody asked; nothing that serves goes before
//! everything serves that is to take its place; and what is broken makes nothing else go.

use std::collections::{BTreeMap, BTreeSet};

use super::departures::Departures;
use crate::model::fingerprint::Fingerprint;
use crate::model::versions::ModelId;

/// What one look has found.
#[derive(Debug, Default)]
pub(super) struct Look {
    /// Whether somebody asked for everything to be loaded again, or the server starts.
    pub(super) asked: bool,
    /// The versions of models that are to be served, each with the fingerprint of its files.
    pub(super) found: BTreeMap<ModelId, Fingerprint>,
    /// The names of models that lie there, and are broken.
    pub(super) broken: BTreeSet<String>,
    /// Versions that serve, and in whose place lies what is to be mended, such as a folder.
    pub(super) occupied: BTreeSet<ModelId>,
}

/// Something to be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Load {
    /// What.
    pub(super) id: ModelId,
    /// What it takes the place of, besides the same version of the same model.
    pub(super) instead_of: Option<ModelId>,
}

/// What earlier looks have seen, and what was done about it.
#[derive(Debug, Default)]
pub(super) struct Plan {
    /// The fingerprints of the files that were last tried, whether they were loaded or refused.
    tried: BTreeMap<ModelId, Fingerprint>,
    /// Fingerprints that were new at the last look; nothing for a version that was gone.
    changing: BTreeMap<ModelId, Option<Fingerprint>>,
    departures: Departures,
}

impl Plan {
    /// Takes note that the files with this fingerprint are tried.
    pub(super) fn note_tried(&mut self, id: &ModelId, fingerprint: Fingerprint) {
        self.changing.remove(id);
        self.tried.insert(id.clone(), fingerprint);
    }

    /// Takes note that a version is let go, or that another one has its place.
    pub(super) fn forget(&mut self, id: &ModelId) {
        self.changing.remove(id);
        self.tried.remove(id);
    }

    /// The models that wait for others before they go, each with what it waits for.
    pub(super) fn waiting(&self) -> impl Iterator<Item = (&str, &BTreeSet<String>)> {
        self.departures.waiting()
    }

    /// What is to be loaded, in this order, while `served` serves.
    pub(super) fn loads(&mut self, look: &Look, served: &BTreeSet<ModelId>) -> Vec<Load> {
        if !look.found.is_empty() {
            self.note_gone(look, served);
        }
        let due: Vec<ModelId> = look
            .found
            .iter()
            .filter(|(id, fingerprint)| look.asked || self.has_settled(id, Some(fingerprint)))
            .map(|(id, _)| id.clone())
            .collect();
        let mut leaving = self.leaving(look, served);
        due.into_iter()
            .map(|id| {
                let place = (!served.contains(&id)).then(|| leaving.get_mut(&id.name));
                // The highest of those that leave, so that who names no version is sent to and fro as little as possible.
                let instead_of = place.flatten().and_then(BTreeSet::pop_last);
                Load { id, instead_of }
            })
            .collect()
    }

    /// What is to be let go, now that `served` serves.
    pub(super) fn retirements(&mut self, look: &Look, served: &BTreeSet<ModelId>) -> Vec<ModelId> {
        // A folder without any model is rather one that is not mounted.
        if look.found.is_empty() {
            return Vec::new();
        }
        let gone = self.note_gone(look, served);
        let is_occupied = |name: &str| look.occupied.iter().any(|id| id.name == name);
        let mut retired = Vec::new();
        for id in served {
            let leaves = if gone.contains(&id.name) {
                self.departures.may_go(&id.name)
            } else {
                let is_sound = !look.broken.contains(&id.name) && !is_occupied(&id.name);
                let mut wanted = look.found.keys().filter(|found| found.name == id.name);
                is_sound && !look.found.contains_key(id) && wanted.all(|it| served.contains(it))
            };
            let is_missing = !look.found.contains_key(id) && there_is_no_doubt(look, id);
            // Noted at every look, so that what waits for a load goes when that has ended.
            let has_settled = is_missing && self.has_settled(id, None);
            if is_missing && (look.asked || has_settled) && leaves {
                retired.push(id.clone());
            }
        }
        retired
    }

    /// Takes note of the models whose files are gone while `served` serves, and says which they are.
    fn note_gone(&mut self, look: &Look, served: &BTreeSet<ModelId>) -> BTreeSet<String> {
        let names = |ids: &mut dyn Iterator<Item = &ModelId>| -> BTreeSet<String> {
            ids.map(|id| id.name.clone()).collect()
        };
        let serving = names(&mut served.iter());
        let mut there = names(&mut look.found.keys());
        there.extend(look.broken.iter().cloned());
        let unserved = there.difference(&serving).cloned().collect();
        let is_occupied = |name: &str| look.occupied.iter().any(|id| id.name == name);
        let gone = serving.difference(&there);
        let gone: BTreeSet<String> = gone.filter(|name| !is_occupied(name)).cloned().collect();
        self.departures.look(&gone, unserved);
        gone
    }

    /// The versions that serve and whose place is to be taken, by the name of the model that may take it: versions that are
    /// not wanted any more, and the only model, if another one is the only one now and nothing else has appeared that may be
    /// the old one.
    fn leaving(
        &self,
        look: &Look,
        served: &BTreeSet<ModelId>,
    ) -> BTreeMap<String, BTreeSet<ModelId>> {
        let mut leaving: BTreeMap<String, BTreeSet<ModelId>> = BTreeMap::new();
        if let (Some(found), Some(old)) = (only_name(look.found.keys()), only_name(served.iter()))
            && found != old
        {
            let doubt = self.departures.is_doubtful(old, found);
            if !doubt.unwrap_or(!look.broken.is_empty()) {
                leaving.insert(found.to_owned(), served.clone());
            }
            return leaving;
        }
        let unwanted = served.iter().filter(|id| {
            let is_sound = !look.broken.contains(&id.name) && !look.occupied.contains(id);
            is_sound && !look.found.contains_key(id)
        });
        for id in unwanted {
            leaving
                .entry(id.name.clone())
                .or_default()
                .insert(id.clone());
        }
        leaving
    }

    /// Whether the files of `id` differ from those that were tried, and were the same at the last look: somebody may still
    /// be writing them.
    fn has_settled(&mut self, id: &ModelId, fingerprint: Option<&Fingerprint>) -> bool {
        if fingerprint.is_some() && self.tried.get(id) == fingerprint {
            self.changing.remove(id);
            return false;
        }
        let last = self.changing.insert(id.clone(), fingerprint.cloned());
        last.is_some_and(|last| last.as_ref() == fingerprint)
    }
}

/// Whether `id` is really not there any more, and not only broken for the time being.
fn there_is_no_doubt(look: &Look, id: &ModelId) -> bool {
    !look.broken.contains(&id.name) && !look.occupied.contains(id)
}

/// The only name among `ids`, if there is one.
fn only_name<'a>(mut ids: impl Iterator<Item = &'a ModelId>) -> Option<&'a str> {
    let first = ids.next()?;
    ids.all(|id| id.name == first.name)
        .then_some(first.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> ModelId {
        let (name, version) = text.split_once('/').unwrap();
        ModelId::new(name, version)
    }

    fn ids(texts: &[&str]) -> BTreeSet<ModelId> {
        texts.iter().map(|text| id(text)).collect()
    }

    /// A fingerprint that differs from that of any other file.
    fn fingerprint(file: &str) -> Fingerprint {
        Fingerprint::of([file])
    }

    /// A look that finds these, each as `name/version`, perhaps with `=` and what distinguishes its files.
    fn found(texts: &[&str]) -> Look {
        let found = texts.iter().map(|text| {
            let (text, files) = text.split_once('=').unwrap_or((text, ""));
            (id(text), fingerprint(files))
        });
        Look {
            found: found.collect(),
            ..Look::default()
        }
    }

    fn asked(texts: &[&str]) -> Look {
        Look {
            asked: true,
            ..found(texts)
        }
    }

    fn broken(look: Look, names: &[&str]) -> Look {
        let broken = names.iter().map(|name| (*name).to_owned()).collect();
        Look { broken, ..look }
    }

    /// A server with a plan, of which loads fail that are named.
    struct Server {
        plan: Plan,
        served: BTreeSet<ModelId>,
    }

    impl Server {
        /// One that starts.
        fn new() -> Self {
            Self {
                plan: Plan::default(),
                served: BTreeSet::new(),
            }
        }

        /// One that was started with these.
        fn with(texts: &[&str]) -> Self {
            let mut server = Self::new();
            server.see(&asked(texts), &[]);
            server
        }

        /// What is done at a look: `+` what is loaded, `>` what has its place, `!` if that fails, and `-` what is let go.
        fn see(&mut self, look: &Look, failing: &[&str]) -> String {
            let mut done = Vec::new();
            for load in self.plan.loads(look, &self.served) {
                let fails = failing.contains(&load.id.to_string().as_str());
                let place = load.instead_of.iter().map(|old| format!("{old}>"));
                let mark = if fails { "!" } else { "" };
                done.push(format!("{}+{}{mark}", place.collect::<String>(), load.id));
                let files = look.found.get(&load.id).unwrap().clone();
                self.plan.note_tried(&load.id, files);
                if !fails {
                    if let Some(old) = &load.instead_of {
                        self.served.remove(old);
                        self.plan.forget(old);
                    }
                    self.served.insert(load.id);
                }
            }
            for id in self.plan.retirements(look, &self.served) {
                done.push(format!("-{id}"));
                self.served.remove(&id);
                self.plan.forget(&id);
            }
            done.join(" ")
        }

        /// The same at two looks in turn, of which the first does nothing, since files may still be written.
        fn settle(&mut self, look: &Look, failing: &[&str]) -> String {
            assert_eq!(self.see(look, failing), "", "at the first look");
            let done = self.see(look, failing);
            assert_eq!(self.see(look, failing), "", "at the third look");
            done
        }
    }

    #[test]
    fn the_first_look_loads_everything_and_one_that_fails_keeps_no_other() {
        let mut server = Server::new();
        let look = broken(asked(&["a/1", "b/1", "c/1", "c/2"]), &["d"]);
        let done = server.see(&look, &["b/1"]);
        assert_eq!(done, "+a/1 +b/1! +c/1 +c/2");
        assert_eq!(server.served, ids(&["a/1", "c/1", "c/2"]));
        // What has failed is tried again when its files change, or somebody asks.
        let look = broken(found(&["a/1", "b/1", "c/1", "c/2"]), &["d"]);
        assert_eq!(server.see(&look, &[]), "");
        let look = found(&["a/1", "b/1=mended", "c/1", "c/2", "d/1"]);
        assert_eq!(server.settle(&look, &[]), "+b/1 +d/1");
        let look = asked(&["a/1"]);
        assert_eq!(server.see(&look, &[]), "+a/1 -b/1 -c/1 -c/2 -d/1");
    }

    #[test]
    fn what_has_changed_is_loaded_once_it_is_whole() {
        let mut server = Server::with(&["a/1"]);
        assert_eq!(server.see(&found(&["a/1=x"]), &[]), "");
        assert_eq!(server.see(&found(&["a/1=y"]), &[]), "", "still written");
        assert_eq!(server.see(&found(&["a/1=y"]), &[]), "+a/1");
        assert_eq!(server.see(&found(&["a/1=y"]), &[]), "");
        assert_eq!(server.settle(&found(&["a/1=z"]), &["a/1"]), "+a/1!");
        assert_eq!(server.served, ids(&["a/1"]), "the old one goes on");
    }

    #[test]
    fn a_version_takes_the_place_of_one_that_is_not_wanted_any_more() {
        for (before, then, failing, done, served) in [
            (
                &["a/1"][..],
                &["a/2"][..],
                &[][..],
                "a/1>+a/2",
                &["a/2"][..],
            ),
            (&["a/1"], &["a/2"], &["a/2"], "a/1>+a/2!", &["a/1"]),
            (&["a/2"], &["a/1"], &[], "a/2>+a/1", &["a/1"]),
            (
                &["a/1", "a/2"],
                &["a/2", "a/3"],
                &[],
                "a/1>+a/3",
                &["a/2", "a/3"],
            ),
            (
                &["a/1", "a/2"],
                &["a/2", "a/3"],
                &["a/3"],
                "a/1>+a/3!",
                &["a/1", "a/2"],
            ),
            (&["a/1"], &["a/1", "a/2"], &[], "+a/2", &["a/1", "a/2"]),
            (&["a/1", "a/2"], &["a/2"], &[], "-a/1", &["a/2"]),
            (&["a/1", "a/2"], &["a/3"], &[], "a/2>+a/3 -a/1", &["a/3"]),
            (
                &["a/1", "b/1"],
                &["a/1", "b/2"],
                &[],
                "b/1>+b/2",
                &["a/1", "b/2"],
            ),
        ] {
            let mut server = Server::with(before);
            let all = server.see(&asked(then), failing);
            // What serves already is loaded again.
            let words = all.split(' ');
            let again = |word: &&str| before.iter().any(|id| **word == format!("+{id}"));
            let new: Vec<&str> = words.filter(|word| !again(word)).collect();
            assert_eq!(new.join(" "), done, "{before:?} {then:?}");
            assert_eq!(server.served, ids(served), "{before:?} {then:?}");
            // Unasked it comes to the same, once what was found has settled.
            let mut server = Server::with(before);
            let looks = [(); 3].map(|()| server.see(&found(then), failing));
            let looks: Vec<String> = looks.into_iter().filter(|it| !it.is_empty()).collect();
            assert_eq!(looks.join(" "), done, "{before:?} {then:?}");
            assert_eq!(server.served, ids(served), "{before:?} {then:?}");
        }
    }

    #[test]
    fn the_only_model_under_another_name_takes_the_place_of_the_old_one() {
        let mut server = Server::with(&["a/1"]);
        assert_eq!(server.settle(&found(&["b/1"]), &["b/1"]), "a/1>+b/1!");
        assert_eq!(server.served, ids(&["a/1"]), "one of the two serves");
        assert_eq!(server.settle(&found(&["b/1=mended"]), &[]), "a/1>+b/1");
        // What was broken before has not come of it.
        let mut server = Server::with(&["a/1"]);
        assert_eq!(server.settle(&broken(found(&["a/1"]), &["c"]), &[]), "");
        let look = broken(found(&["b/1"]), &["c"]);
        assert_eq!(server.settle(&look, &[]), "a/1>+b/1");
        let mut server = Server::with(&["a/1"]);
        assert_eq!(server.see(&broken(asked(&["a/1"]), &["c"]), &[]), "+a/1");
        let look = broken(asked(&["b/1"]), &["c"]);
        assert_eq!(server.see(&look, &[]), "a/1>+b/1");
        // Beside something that broke in the same moment nobody knows what has become of what.
        let mut server = Server::with(&["a/1"]);
        let look = broken(found(&["b/1"]), &["c"]);
        assert_eq!(server.settle(&look, &[]), "+b/1");
        assert_eq!(server.served, ids(&["a/1", "b/1"]));
        assert_eq!(server.see(&found(&["b/1"]), &[]), "-a/1");
    }

    #[test]
    fn what_waited_for_a_slow_load_goes_behind_it_and_what_is_missing_only_then_stays() {
        let mut server = Server::with(&["a/1", "a/2", "c/1"]);
        let look = asked(&["a/3", "c/1"]);
        let loads = server.plan.loads(&look, &server.served);
        assert_eq!(loads[0].instead_of, Some(id("a/2")));
        // It is still being loaded.
        assert!(server.plan.retirements(&look, &server.served).is_empty());
        server.served = ids(&["a/1", "a/3", "c/1"]);
        server.plan.forget(&id("a/2"));
        let look = found(&["a/3"]);
        let retired = server.plan.retirements(&look, &server.served);
        assert_eq!(retired, [id("a/1")]);
    }

    #[test]
    fn what_is_broken_or_not_mounted_makes_nothing_go() {
        let mut server = Server::with(&["a/1", "b/1"]);
        for look in [
            broken(found(&["b/1"]), &["a"]),
            broken(found(&["b/1", "a/2"]), &["a"]),
            found(&[]),
            Look {
                occupied: ids(&["a/1"]),
                ..found(&["b/1"])
            },
        ] {
            for _ in 0..3 {
                assert!(!server.see(&look, &[]).contains("-a/1"), "{look:?}");
            }
            assert!(server.served.contains(&id("a/1")), "{look:?}");
        }
        let look = found(&["b/1"]);
        let done = [server.see(&look, &[]), server.see(&look, &[])].join(" ");
        assert!(done.contains("-a/1"), "{done}");
    }
}
