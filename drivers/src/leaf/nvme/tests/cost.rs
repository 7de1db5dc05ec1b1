//! What the driver itself costs, without a device's time:
//! `cargo test --release -p oxblock-drivers nvme::tests::cost -- --ignored --nocapture`

use std::hint::black_box;
use std::time::{Duration, Instant};

use oxblock_engine::{OpFlags, OpKind, Pass, Request, Token};
use oxblock_mem::IoVector;
use oxblock_nvme::status::Status;

use super::Rig;

/// Commands in flight, and rounds of them.
const DEPTH: u64 = 32;
const ROUNDS: u64 = 40_000;

#[test]
#[ignore = "measures, checks nothing"]
fn submit_and_complete() {
    let mut rig = Rig::new(|_| {});
    let (_, node) = rig.node();
    let queue = rig.run(|core| async move { node.driver().expect("a leaf").queue(&core).await });
    let (mut queue, mut pass) = (queue.unwrap(), Pass::new(64));
    let bufs: Vec<IoVector> = (0..DEPTH).map(|_| rig.buf(4096).into()).collect();
    rig.device.state().hold = true;
    let mut times: [Vec<Duration>; 3] = Default::default();
    for round in 0..ROUNDS {
        let begun = Instant::now();
        for (token, data) in (0..).zip(&bufs) {
            let request = Request {
                token: Token(token),
                kind: OpKind::Read,
                flags: OpFlags::empty(),
                offset: (round * 7 + token) % 500 * 4096,
                len: 4096,
                data: data.view(0, 4096),
            };
            queue.submit(black_box(&request), &mut pass).unwrap();
        }
        times[0].push(begun.elapsed());
        let begun = Instant::now();
        queue.kick(&mut pass);
        times[1].push(begun.elapsed());
        let mut state = rig.device.state();
        state.seen.clear();
        while let Some((sqid, command)) = state.held.pop_front() {
            state.post(sqid, command.cid(), Status::SUCCESS, 0);
        }
        drop(state);
        let begun = Instant::now();
        let count = queue.poll(&mut pass);
        times[2].push(begun.elapsed());
        assert_eq!((count as u64, pass.drain().count() as u64), (DEPTH, DEPTH));
    }
    // The median round, since the machine may be busy with other things.
    let [submit, kick, complete] = times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as f64 / DEPTH as f64
    });
    println!(
        "4 KiB read, {DEPTH} in flight: submit {submit:.1} ns, complete {complete:.1} ns, together \
         {:.1} ns (the scripted device's doorbell: {kick:.1} ns)",
        submit + complete,
    );
}
