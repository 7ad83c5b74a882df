//! How requests hear of what was computed, and how they end.

use super::super::clients::Client;
use super::super::gate::failed_request;
use super::super::request::{Delta, DeltaLogits, Finish, FinishReason};
use super::super::sequence::{Inspected, SeqDelta};
use super::EngineCore;
use crate::error::Error;
use crate::ids::RequestId;
use crate::step::{Inspection, StepOutput};

impl EngineCore {
    /// Passes new tokens on. The last delta of a request is returned instead, so that whoever hears of the end finds it
    /// in the statistics.
    pub(super) fn deliver(&mut self, seq_delta: SeqDelta, output: &mut StepOutput) -> Option<(Client, Delta)> {
        let SeqDelta { address, row, accepted, inspected, stats, finish } = seq_delta;
        let tokens = row.map_or(&[][..], |row| &output.rows[row].tokens[..accepted]);
        let mut delta = Delta {
            sequence_index: address.index as usize,
            tokens: tokens.iter().map(|token| token.id).collect(),
            log_probs: tokens.iter().filter_map(|token| token.log_prob).collect(),
            top: row.map_or_else(Vec::new, |row| output.rows[row].top.iter().take(accepted).cloned().collect()),
            stats,
            finish,
            ..Delta::default()
        };
        if let Some(inspected) = inspected {
            delta.logits = Some(Box::new(inspected_logits(&inspected, &mut output.inspections[inspected.number])));
        }
        self.totals.generated_tokens += accepted as u64;
        let client = self.clients.get_mut(address.client)?;
        let request = client.request;
        if let Some(finish) = &mut delta.finish {
            finish.error = finish.error.take().map(|error| of_request(request, &error));
        }
        if client.beams.is_some() {
            return self.deliver_to_search(address.client, delta);
        }
        let Some(finish) = &delta.finish else {
            client.sink.delta(delta);
            return None;
        };
        let reason = finish.reason;
        client.sequences[delta.sequence_index] = None;
        client.open -= 1;
        self.totals.cached_tokens += stats.cached_tokens as u64;
        if client.open > 0 {
            client.sink.delta(delta);
            return None;
        }
        self.count_end(reason);
        self.note(request, "ended");
        Some((self.clients.remove(address.client)?, delta))
    }

    /// Passes what a sequence has computed to the search that it works for; the last of a round starts the next one, or
    /// ends the search.
    fn deliver_to_search(&mut self, place: u32, mut delta: Delta) -> Option<(Client, Delta)> {
        let client = self.clients.get_mut(place)?;
        let (request, group) = (client.request, client.beams.as_mut()?);
        if group.is_first_round() {
            self.totals.cached_tokens += delta.finish.as_ref().map_or(0, |_| delta.stats.cached_tokens as u64);
        }
        group.take(&mut delta);
        let finish = delta.finish?;
        client.sequences[delta.sequence_index] = None;
        client.open -= 1;
        let vocab_size = self.limits.vocab_size;
        let outcome = match finish.error {
            Some(error) if group.is_fatal(&error) => Err(error),
            _ if client.open > 0 => return None,
            _ => group.advance().map_err(|fault| of_request(request, &fault.into_error(vocab_size))),
        };
        let finish = match outcome {
            Ok(true) => {
                if group.streams() {
                    client.sink.delta(group.delta(None, self.now_ns));
                }
                let sequences = self.scheduler.add_round(group.round(), place, group.arrival_ns());
                client.open = sequences.len();
                client.sequences = sequences.into_iter().map(Some).collect();
                return None;
            }
            Ok(false) => Finish { reason: group.reason(), error: None },
            Err(error) => Finish { reason: FinishReason::Error, error: Some(error) },
        };
        let reason = finish.reason;
        let delta = group.delta(Some(finish), self.now_ns);
        for seq in client.sequences.drain(..).flatten() {
            self.scheduler.finish(seq);
        }
        self.count_end(reason);
        self.note(request, "ended");
        Some((self.clients.remove(place)?, delta))
    }

    /// Ends a request now, whatever it is doing.
    pub(super) fn end(&mut self, client: u32, reason: FinishReason, error: Option<&Error>) {
        let Some(mut client) = self.clients.remove(client) else { return };
        if let Some(charge) = client.charge {
            self.gate.leave_queue(charge);
        }
        tracing::debug!(request = client.request.0, ?reason, "end");
        let open = client.sequences.iter().enumerate().filter_map(|(index, seq)| Some((index, (*seq)?)));
        let ended: Vec<_> = open.map(|(index, seq)| (index, self.scheduler.finish(seq).unwrap_or_default())).collect();
        if client.beams.as_ref().is_none_or(|group| group.is_first_round()) {
            self.totals.cached_tokens += ended.iter().map(|(_, stats)| stats.cached_tokens as u64).sum::<u64>();
        }
        self.count_end(reason);
        self.note(client.request, "was ended");
        self.board.lock().totals = self.totals;
        self.unpublished = true;
        if let Some(mut group) = client.beams.take() {
            let finish = Finish { reason, error: error.cloned() };
            return client.sink.delta(group.delta(Some(finish), self.now_ns));
        }
        for (index, stats) in ended {
            client.sink.finish(index, reason, error.cloned(), stats);
        }
    }

    fn count_end(&mut self, reason: FinishReason) {
        self.totals.requests_finished += 1;
        match reason {
            FinishReason::Cancelled => self.totals.requests_cancelled += 1,
            FinishReason::TimedOut => self.totals.requests_timed_out += 1,
            FinishReason::Error => self.totals.requests_failed += 1,
            FinishReason::EndId | FinishReason::StopWords | FinishReason::Length => {}
        }
    }
}

/// An error in the words in which the end of a request is reported.
fn of_request(request: RequestId, error: &Error) -> Error {
    Error::new(error.kind(), failed_request(request, error.message()))
}

fn inspected_logits(inspected: &Inspected, inspection: &mut Inspection) -> DeltaLogits {
    let generation = inspection.logits[inspected.generation.clone()].to_vec();
    let prompt_log_probs = inspection.next_log_probs[..inspected.prompt_log_probs].to_vec();
    let mut context = std::mem::take(&mut inspection.logits);
    context.truncate(inspected.context);
    DeltaLogits { context, generation, prompt_log_probs }
}
