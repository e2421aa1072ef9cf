//! Others' operations beside ours.

use std::cell::RefCell;

use anyhow::{Result, anyhow};
use mamba_core::Precision;

use super::peers::Theirs;
use crate::attempt::attempt;
use crate::engines::op_peer::{Offer, OpPeer};
use crate::measure::{Calls, Measurement};
use crate::problems::Op;
use crate::proofs;
use crate::results::Entry;
use crate::run::Run;

/// Measures ours in turns with all that the peer offers, each proved first; returns ours, and what is there of theirs.
pub(super) fn measure(
    run: &mut Run,
    op: &Op,
    ours: Calls,
) -> Result<(Result<Measurement>, Theirs)> {
    let pace = run.pace();
    let Some(mut peer) = run.peers.operations.take() else {
        return Ok((attempt(|| pace.measure_one(ours)), Vec::new()));
    };
    let length = op.size()[1];
    let half = run.options.precision == Precision::Bf16;
    let offers = run.in_time().and_then(|()| peer.offers(op, half));
    let mut ready = Vec::new();
    match offers {
        Err(reason) => run.miss(op.name(), "python", Some(length), &reason)?,
        Ok(offers) => {
            for Offer { engine, missing } in offers {
                let prepared = match missing {
                    Some(reason) => Err(anyhow!(reason)),
                    None => prepare(run, &mut peer, op, &engine, half),
                };
                match prepared {
                    Ok(how) => {
                        if !run.on_cpu() {
                            run.find(format!("{} by {engine} was timed as {how}.", op.name()))?;
                        }
                        ready.push(engine);
                    }
                    Err(reason) => run.miss(op.name(), &engine, Some(length), &reason)?,
                }
            }
        }
    }
    let id = peer.process.id();
    let asked = RefCell::new(&mut peer);
    let mut contenders = vec![ours];
    for engine in &ready {
        contenders.push(Box::new(|calls| asked.borrow_mut().time(engine, calls)));
    }
    let all = attempt(|| Ok(pace.measure(&mut contenders, &[id])));
    drop(contenders);
    let (ours, theirs) = match all {
        Ok(mut all) => {
            let theirs = ready.into_iter().zip(all.drain(1..)).collect();
            let ours = all.pop();
            let ours = ours.unwrap_or_else(|| Err(anyhow!("nothing was measured")));
            (ours, theirs)
        }
        Err(reason) => (Err(reason), Vec::new()),
    };
    // One that stopped was told of above, or in its row.
    if peer.forget().is_ok() {
        run.peers.operations = Some(peer);
    }
    Ok((ours, theirs))
}

/// Proves an engine and gives it its inputs; returns how it will be timed.
fn prepare(run: &mut Run, peer: &mut OpPeer, op: &Op, engine: &str, half: bool) -> Result<String> {
    let small = op.small();
    let theirs = peer.compute(engine, &small, half)?;
    let precision = run.options.precision;
    let proof = proofs::op_peer(&small, engine, &theirs, precision, run.name)?;
    run.emit(Entry::Proof(proof))?;
    peer.prepare(engine, op, half)
}
