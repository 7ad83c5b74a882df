//! Who waits for what: the engine's side of every request that has not ended.

use std::collections::HashMap;

use super::beams::BeamGroup;
use super::gate::Charge;
use super::sequence::SeqRef;
use super::sink::FinalSink;
use crate::ids::RequestId;

/// A request that has not ended, and who hears of it.
pub(super) struct Client {
    pub request: RequestId,
    pub sink: FinalSink,
    /// What it counts in the queue, until it runs.
    pub charge: Option<Charge>,
    /// Its sequences; `None`: has ended.
    pub sequences: Vec<Option<SeqRef>>,
    pub open: usize,
    /// The search that the sequences work for: its client hears of the search, not of them.
    pub beams: Option<Box<BeamGroup>>,
}

/// All clients, each in a place that it keeps.
#[derive(Default)]
pub(super) struct Clients {
    places: Vec<Option<Client>>,
    free: Vec<u32>,
    by_request: HashMap<RequestId, u32>,
}

impl Clients {
    pub fn insert(&mut self, client: Client) -> u32 {
        let place = self.free.pop().unwrap_or(self.places.len() as u32);
        if place as usize == self.places.len() {
            self.places.push(None);
        }
        self.by_request.insert(client.request, place);
        self.places[place as usize] = Some(client);
        place
    }

    pub fn remove(&mut self, place: u32) -> Option<Client> {
        let client = self.places[place as usize].take()?;
        self.by_request.remove(&client.request);
        self.free.push(place);
        Some(client)
    }

    pub fn get_mut(&mut self, place: u32) -> Option<&mut Client> {
        self.places[place as usize].as_mut()
    }

    pub fn find(&self, request: RequestId) -> Option<u32> {
        self.by_request.get(&request).copied()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Client> {
        self.places.iter().flatten()
    }

    pub fn those(&self, which: impl Fn(&Client) -> bool) -> Vec<u32> {
        let is_chosen = |place: &u32| self.places[*place as usize].as_ref().is_some_and(&which);
        (0..self.places.len() as u32).filter(is_chosen).collect()
    }

    pub fn all(&self) -> Vec<u32> {
        self.those(|_| true)
    }
}
