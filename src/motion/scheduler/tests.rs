use super::*;
use crate::motion::chunk::tests::{STEP, chunk, ms};
use crate::motion::sampler::Phase;
use proptest::prelude::*;

fn config(mode: HandoverMode) -> SchedulerConfig {
    SchedulerConfig {
        mode,
        step_time: STEP,
        horizon: 8,
        execute_horizon: 4,
        overlap: 2,
        initial_latency: Duration::from_millis(50),
        latency_window: 3,
        latency_quantile: 1.0,
    }
}

fn scheduler(mode: HandoverMode) -> Scheduler {
    Scheduler::new(config(mode)).unwrap()
}

/// A scheduler that executes rows 0.0 to 7.0, asked for and observed at 0, come at 50 ms.
fn running(mode: HandoverMode) -> Scheduler {
    let mut scheduler = scheduler(mode);
    assert_eq!(scheduler.on_request(ms(0), ms(0)).sequence, 0);
    let first = chunk(ms(0), 0, &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]);
    assert_eq!(scheduler.on_chunk(ms(50), first), Arrival::Entered { row: 0, ramp: None });
    scheduler
}

fn command(scheduler: &mut Scheduler, milliseconds: i64) -> f64 {
    scheduler.command(ms(milliseconds)).unwrap().positions[0]
}

#[test]
fn before_the_first_chunk_there_is_no_command_and_a_request_is_due() {
    let mut scheduler = scheduler(HandoverMode::Rtc);
    assert!(scheduler.due(ms(0)));
    assert_eq!(scheduler.command(ms(0)), None);
    assert_eq!(scheduler.hold(ms(0)), None);
    let request = scheduler.on_request(ms(10), ms(0));
    assert_eq!((request.arrival, request.tied, request.planned), (ms(60), TiedRows::default(), None));
    assert!(!scheduler.due(ms(20)));
}

#[test]
fn commands_go_on_while_a_request_is_unanswered() {
    let mut scheduler = running(HandoverMode::Blend);
    scheduler.on_request(ms(250), ms(240));
    for time in (250..2000).step_by(10) {
        let expected = (time as f64 / 100.0 - 1.0).min(7.0);
        assert!((command(&mut scheduler, time) - expected).abs() < 1e-12);
    }
    assert_eq!(scheduler.command(ms(2000)).unwrap().phase, Phase::Held);
}

#[test]
fn the_next_chunk_is_asked_for_so_that_it_comes_before_the_executed_horizon_ends() {
    let scheduler = running(HandoverMode::Blend);
    // Four steps are over at 400; one step earlier, less 50 ms of latency.
    assert!(!scheduler.due(ms(249)) && scheduler.due(ms(250)));
    let mut slow = running(HandoverMode::Blend);
    slow.on_request(ms(250), ms(250));
    slow.on_chunk(ms(350), chunk(ms(250), 1, &[3.0; 8]));
    assert_eq!(slow.predicted_latency(), Duration::from_millis(100));
    // 250 + 400 - 100 - 100.
    assert!(!slow.due(ms(449)) && slow.due(ms(450)));
}

#[test]
fn a_new_chunk_is_entered_at_the_row_that_belongs_to_now() {
    for mode in HandoverMode::ALL {
        let mut scheduler = running(mode);
        scheduler.on_request(ms(250), ms(200));
        let rows = [20.0, 21.0, 22.0, 23.0, 24.0, 25.0, 26.0, 27.0];
        let arrival = scheduler.on_chunk(ms(450), chunk(ms(200), 1, &rows));
        // Rows at 300 and 400 are history.
        assert!(matches!(arrival, Arrival::Entered { row: 2, .. }), "{arrival:?}");
        let now = command(&mut scheduler, 450);
        let expected = if mode == HandoverMode::Replace { 21.5 } else { 3.5 };
        assert_eq!(now, expected, "{mode}");
        // All modes follow the new chunk once the overlap is over.
        assert_eq!(command(&mut scheduler, 650), 23.5, "{mode}");
    }
}

#[test]
fn a_chunk_entered_before_its_first_row_approaches_it_from_what_was_commanded_at_its_start() {
    for mode in HandoverMode::ALL {
        let mut scheduler = running(mode);
        scheduler.on_request(ms(300), ms(300));
        // Rows that go on as the running ones do, 2.0 at 300: nothing changes, not even between start and first row.
        scheduler.on_chunk(ms(320), chunk(ms(300), 1, &[3.0, 4.0, 5.0, 6.0]));
        for time in (320..700).step_by(10) {
            let expected = time as f64 / 100.0 - 1.0;
            assert!((command(&mut scheduler, time) - expected).abs() < 1e-12, "{mode} {time}");
        }
    }
}

#[test]
fn blending_leaves_with_the_old_velocity_and_arrives_with_the_new_one() {
    let mut scheduler = running(HandoverMode::Blend);
    scheduler.on_request(ms(300), ms(250));
    // At rest at 2.5, where the old chunk is at 350.
    let arrival = scheduler.on_chunk(ms(350), chunk(ms(250), 1, &[2.5; 8]));
    let ramp = Ramp { start: ms(350), duration: 2 * STEP };
    assert_eq!(arrival, Arrival::Entered { row: 0, ramp: Some(ramp) });
    // Commands go forward in time only.
    let velocity = |scheduler: &mut Scheduler, time| {
        let before = command(scheduler, time);
        (command(scheduler, time + 1) - before) * 1e3
    };
    assert!((velocity(&mut scheduler, 350) - 10.0).abs() < 1e-3);
    assert!(velocity(&mut scheduler, 549).abs() < 0.2);
    assert_eq!(command(&mut scheduler, 551), 2.5);
}

#[test]
fn a_real_time_chunking_request_freezes_what_will_be_executed_meanwhile() {
    let mut scheduler = running(HandoverMode::Rtc);
    let request = scheduler.on_request(ms(250), ms(230));
    // Rows at 330, 430, 530, 630; the answer is expected at 300, so the command is then on its way to the first.
    assert_eq!((request.sequence, request.arrival), (1, ms(300)));
    assert_eq!(request.tied, TiedRows { frozen: 1, decaying: 2 });
    let planned = request.planned.unwrap();
    assert_eq!(&planned.weights[..1], &[1.0]);
    assert!(planned.weights[1] > planned.weights[2] && planned.weights[2] > 0.0 && planned.weights[3] == 0.0);
    let expected = [2.3, 3.3, 4.3, 5.3, 6.3, 7.0, 7.0, 7.0];
    for (value, expected) in planned.actions["arm"].column(0).iter().zip(expected) {
        assert!((value - expected).abs() < 1e-6);
    }
}

#[test]
fn only_real_time_chunking_ties_the_denoising() {
    for mode in [HandoverMode::Replace, HandoverMode::Blend] {
        let request = running(mode).on_request(ms(250), ms(230));
        assert_eq!((request.tied.frozen, request.planned), (1, None));
    }
}

#[test]
fn after_the_running_chunks_end_nothing_is_tied() {
    let mut scheduler = running(HandoverMode::Rtc);
    let request = scheduler.on_request(ms(1000), ms(990));
    assert_eq!((request.tied, request.planned), (TiedRows::default(), None));
}

#[test]
fn a_real_time_chunk_in_time_needs_one_step_and_a_late_one_the_overlap() {
    for (came, steps, late) in [(320, 1, 0), (331, 2, 1)] {
        let mut scheduler = running(HandoverMode::Rtc);
        scheduler.on_request(ms(250), ms(230));
        let arrival = scheduler.on_chunk(ms(came), chunk(ms(230), 1, &[2.3; 8]));
        let Arrival::Entered { ramp: Some(ramp), .. } = arrival else { panic!("{arrival:?}") };
        assert_eq!(ramp.duration, steps * STEP);
        assert_eq!(scheduler.counters().late, late);
    }
}

#[test]
fn chunks_that_come_too_late_or_out_of_turn_are_dropped_and_counted() {
    let dropped = |scheduler: &mut Scheduler, now, chunk, reason| {
        let before = command(scheduler, now);
        assert_eq!(scheduler.on_chunk(ms(now), chunk), Arrival::Dropped(reason));
        assert_eq!(command(scheduler, now), before);
    };
    let mut scheduler = running(HandoverMode::Blend);
    dropped(&mut scheduler, 100, chunk(ms(50), 0, &[9.0; 8]), Dropped::OutOfSequence);
    dropped(&mut scheduler, 100, chunk(ms(-50), 1, &[9.0; 8]), Dropped::Older);
    dropped(&mut scheduler, 401, chunk(ms(100), 1, &[9.0; 3]), Dropped::Expired);
    let other = MotionChunk::new(ms(350), STEP, 1, vec![]);
    assert!(other.is_err());
    let group = crate::motion::MotionGroup {
        key: "leg".into(),
        joints: vec!["knee".into()],
        values: ndarray::Array2::zeros((8, 1)),
    };
    let other = MotionChunk::new(ms(350), STEP, 1, vec![group]).unwrap();
    dropped(&mut scheduler, 401, other, Dropped::Layout);
    // The last row's own instant is not yet the past.
    let last = scheduler.on_chunk(ms(401), chunk(ms(301), 1, &[9.0]));
    assert!(matches!(last, Arrival::Entered { row: 0, .. }));
    let counters = scheduler.counters();
    let expected = Counters {
        requested: 1,
        entered: 2,
        out_of_sequence: 1,
        older: 1,
        expired: 1,
        layout: 1,
        ..Counters::default()
    };
    assert_eq!(counters, expected);
}

#[test]
fn a_flood_of_chunks_is_bounded() {
    let mut scheduler = running(HandoverMode::Blend);
    for sequence in 1..100 {
        scheduler.on_chunk(ms(100), chunk(ms(50), sequence, &[1.0; 8]));
    }
    assert_eq!(scheduler.plan().unwrap().chunks().count(), 9);
    assert_eq!(scheduler.counters().crowded, 91);
    // Once they took over there is room again.
    command(&mut scheduler, 400);
    let arrival = scheduler.on_chunk(ms(400), chunk(ms(390), 100, &[1.0; 8]));
    assert!(matches!(arrival, Arrival::Entered { .. }));
}

#[test]
fn a_failed_request_makes_room_for_the_next() {
    let mut scheduler = scheduler(HandoverMode::Blend);
    let request = scheduler.on_request(ms(0), ms(0));
    scheduler.on_failure(request.sequence + 1);
    assert!(scheduler.is_waiting());
    scheduler.on_failure(request.sequence);
    assert!(!scheduler.is_waiting() && scheduler.due(ms(10)));
    assert_eq!(scheduler.counters().failed, 1);
}

#[test]
fn holding_keeps_the_pose_and_refuses_answers_to_earlier_requests() {
    let mut scheduler = running(HandoverMode::Blend);
    let asked = scheduler.on_request(ms(250), ms(240)).sequence;
    let held = scheduler.hold(ms(260)).unwrap();
    assert!((held.positions[0] - 1.6).abs() < 1e-12);
    assert_eq!((held.phase, held.sequence), (Phase::Held, None));
    let arrival = scheduler.on_chunk(ms(300), chunk(ms(240), asked, &[9.0; 8]));
    assert_eq!(arrival, Arrival::Dropped(Dropped::OutOfSequence));
    assert_eq!(command(&mut scheduler, 5000), held.positions[0]);
    // From the held pose, the next motion begins gradually.
    assert!(scheduler.due(ms(5000)));
    let asked = scheduler.on_request(ms(5000), ms(5000)).sequence;
    scheduler.on_chunk(ms(5050), chunk(ms(5000), asked, &[9.0; 8]));
    assert_eq!(command(&mut scheduler, 5050), held.positions[0]);
    assert_eq!(command(&mut scheduler, 5250), 9.0);
}

#[test]
fn the_first_chunk_is_entered_gradually_from_a_given_pose() {
    let mut scheduler = scheduler(HandoverMode::Rtc);
    let layout = chunk(ms(0), 0, &[0.0]).layout().clone();
    assert!(scheduler.hold_pose(layout.clone(), vec![]).is_err());
    scheduler.hold_pose(layout, vec![-1.0]).unwrap();
    assert_eq!(command(&mut scheduler, 0), -1.0);
    let asked = scheduler.on_request(ms(0), ms(0));
    assert_eq!(asked.planned, None);
    scheduler.on_chunk(ms(50), chunk(ms(0), asked.sequence, &[1.0; 8]));
    assert_eq!([50, 150, 250].map(|time| command(&mut scheduler, time)), [-1.0, 0.0, 1.0]);
}

#[test]
fn when_the_clock_jumps_back_the_last_pose_is_held_until_a_new_chunk_comes() {
    let mut scheduler = running(HandoverMode::Blend);
    assert_eq!(command(&mut scheduler, 450), 3.5);
    let asked = scheduler.on_request(ms(450), ms(440)).sequence;
    assert_eq!(command(&mut scheduler, -10_000), 3.5);
    assert_eq!(command(&mut scheduler, -9_000), 3.5);
    assert_eq!(scheduler.counters().clock_jumps, 1);
    let stale = scheduler.on_chunk(ms(-9_000), chunk(ms(440), asked, &[9.0; 8]));
    assert_eq!(stale, Arrival::Dropped(Dropped::OutOfSequence));
    assert!(scheduler.due(ms(-9_000)));
    let asked = scheduler.on_request(ms(-9_000), ms(-9_010)).sequence;
    scheduler.on_chunk(ms(-8_950), chunk(ms(-9_010), asked, &[9.0; 8]));
    assert_eq!(command(&mut scheduler, -8_950), 3.5);
    assert_eq!(command(&mut scheduler, -8_750), 9.0);
}

#[test]
fn a_clock_that_jumped_back_is_noticed_by_whatever_comes_first() {
    let mut scheduler = running(HandoverMode::Blend);
    assert_eq!(command(&mut scheduler, 450), 3.5);
    let arrival = scheduler.on_chunk(ms(-9_000), chunk(ms(-9_010), 7, &[9.0; 8]));
    assert!(matches!(arrival, Arrival::Entered { .. }));
    assert_eq!(command(&mut scheduler, -9_000), 3.5);
    assert_eq!(scheduler.counters().clock_jumps, 1);
}

#[test]
fn a_command_a_little_out_of_order_repeats_the_newest() {
    let mut scheduler = running(HandoverMode::Blend);
    assert_eq!(command(&mut scheduler, 450), 3.5);
    assert_eq!(command(&mut scheduler, 440), 3.5);
    assert_eq!(command(&mut scheduler, 460), 3.6);
    assert_eq!(scheduler.counters().clock_jumps, 0);
}

#[test]
fn forgetting_everything_leaves_nothing_to_command() {
    let mut scheduler = running(HandoverMode::Blend);
    let asked = scheduler.on_request(ms(250), ms(240)).sequence;
    scheduler.reset();
    assert_eq!(scheduler.command(ms(260)), None);
    let arrival = scheduler.on_chunk(ms(300), chunk(ms(240), asked, &[9.0; 8]));
    assert_eq!(arrival, Arrival::Dropped(Dropped::OutOfSequence));
}

#[test]
fn settings_that_do_not_fit_are_refused_and_the_old_ones_stay() {
    let good = || config(HandoverMode::Blend);
    let mut scheduler = Scheduler::new(good()).unwrap();
    for (config, part) in [
        (SchedulerConfig { step_time: Duration::ZERO, ..good() }, "step time above zero"),
        (SchedulerConfig { horizon: 0, ..good() }, "horizon of 1 to 4096 steps, found 0"),
        (SchedulerConfig { horizon: 5000, ..good() }, "found 5000"),
        (
            SchedulerConfig { execute_horizon: 0, ..good() },
            "1 to 8 steps to execute (the chunk's horizon), found 0",
        ),
        (SchedulerConfig { execute_horizon: 9, ..good() }, "found 9"),
        (SchedulerConfig { overlap: 9, ..good() }, "overlap of 0 to 8 steps"),
    ] {
        assert!(scheduler.configure(config).unwrap_err().to_string().contains(part), "{part}");
    }
    assert_eq!(scheduler.config(), &good());
}

#[test]
fn changed_settings_hold_for_the_next_hand_over_and_keep_what_was_measured() {
    let mut scheduler = running(HandoverMode::Blend);
    scheduler.on_request(ms(250), ms(250));
    scheduler.on_chunk(ms(350), chunk(ms(250), 1, &[2.5; 8]));
    scheduler.configure(config(HandoverMode::Replace)).unwrap();
    assert_eq!(scheduler.predicted_latency(), Duration::from_millis(100));
    // The hand-over in progress goes on; the next one is at once.
    assert!((command(&mut scheduler, 400) - (3.0 * 27.0 / 32.0 + 2.5 * 5.0 / 32.0)).abs() < 1e-12);
    scheduler.on_chunk(ms(400), chunk(ms(390), 2, &[8.0; 8]));
    assert_eq!(command(&mut scheduler, 490), 8.0);
    let slower = SchedulerConfig { initial_latency: Duration::from_secs(1), ..config(HandoverMode::Replace) };
    scheduler.configure(slower).unwrap();
    assert_eq!(scheduler.predicted_latency(), Duration::from_secs(1));
}

/// One thing that may happen to a scheduler.
#[derive(Debug, Clone)]
enum Event {
    Command(i64),
    Request(i64, i64),
    Chunk(i64, i64, u64, Vec<f32>),
    Failure(u64),
    Hold(i64),
    Mode(HandoverMode),
}

fn mode() -> impl Strategy<Value = HandoverMode> {
    proptest::sample::select(HandoverMode::ALL.to_vec())
}

fn event(stamp: impl Strategy<Value = i64> + Clone) -> impl Strategy<Value = Event> {
    let rows = proptest::collection::vec(-2.0f32..2.0, 1..10);
    prop_oneof![
        stamp.clone().prop_map(Event::Command),
        (stamp.clone(), stamp.clone()).prop_map(|(now, observed)| Event::Request(now, observed)),
        (stamp.clone(), stamp.clone(), 0u64..30, rows).prop_map(|(n, o, s, r)| Event::Chunk(n, o, s, r)),
        (0u64..30).prop_map(Event::Failure),
        stamp.prop_map(Event::Hold),
        mode().prop_map(Event::Mode),
    ]
}

fn check_command(sample: Option<Sample>) -> Result<(), TestCaseError> {
    if let Some(sample) = sample {
        prop_assert!(sample.positions.iter().all(|value| (-2.0..=2.0).contains(value)), "{:?}", sample);
    }
    Ok(())
}

fn apply(scheduler: &mut Scheduler, event: Event) -> Result<(), TestCaseError> {
    match event {
        Event::Command(now) => check_command(scheduler.command(Stamp(now)))?,
        Event::Hold(now) => check_command(scheduler.hold(Stamp(now)))?,
        Event::Request(now, observed) => {
            let _ = scheduler.due(Stamp(now));
            let request = scheduler.on_request(Stamp(now), Stamp(observed));
            prop_assert!(request.planned.is_none_or(|planned| planned.weights.len() == 8));
        }
        Event::Chunk(now, observed, sequence, rows) => {
            scheduler.on_chunk(Stamp(now), chunk(Stamp(observed), sequence, &rows));
        }
        Event::Failure(sequence) => scheduler.on_failure(sequence),
        Event::Mode(mode) => scheduler.configure(config(mode)).unwrap(),
    }
    Ok(())
}

proptest! {
    #[test]
    fn no_sequence_of_stamps_panics_or_leaves_what_the_chunks_span(
        first in mode(), events in proptest::collection::vec(event(any::<i64>()), 0..40),
    ) {
        let mut scheduler = scheduler(first);
        for event in events {
            apply(&mut scheduler, event)?;
        }
    }

    #[test]
    fn no_nearby_stamps_in_any_order_panic_or_leave_what_the_chunks_span(
        first in mode(), events in proptest::collection::vec(event(-1_000_000_000i64..2_000_000_000), 0..40),
    ) {
        let mut scheduler = scheduler(first);
        for event in events {
            apply(&mut scheduler, event)?;
        }
    }

    /// Commands lie between the lowest and the highest row of the chunks that have a say.
    #[test]
    fn a_command_lies_within_the_chunks_in_force(
        mode in mode(),
        chunks in proptest::collection::vec((1i64..400, 0i64..300, proptest::collection::vec(-2.0f32..2.0, 8)), 1..8),
    ) {
        let mut scheduler = scheduler(mode);
        let mut now = 0;
        for (sequence, (gap, age, rows)) in chunks.into_iter().enumerate() {
            scheduler.on_chunk(ms(now), chunk(ms(now - age), sequence as u64, &rows));
            for _ in 0..gap / 10 {
                now += 10;
                let position = command(&mut scheduler, now);
                let rows = |chunk: &MotionChunk| chunk.values().iter().map(|&row| f64::from(row)).collect::<Vec<_>>();
                let origin = |chunk: &MotionChunk| chunk.origin().unwrap_or_default().to_vec();
                let values = |chunk| [rows(chunk), origin(chunk)].concat();
                let all = || scheduler.plan().unwrap().chunks().flat_map(values);
                let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
                prop_assert!(low <= position && position <= high);
            }
        }
    }

    /// Between two times a command moves at most as far as the steepest chunk, and each hand-over in progress adds at most
    /// 1.5 times the span of the chunks per duration of its ramp.
    #[test]
    fn with_blend_and_rtc_commands_are_continuous_in_time(
        rtc in any::<bool>(),
        chunks in proptest::collection::vec((1i64..400, 0i64..300, proptest::collection::vec(-2.0f32..2.0, 8)), 1..8),
    ) {
        let mut scheduler = scheduler(if rtc { HandoverMode::Rtc } else { HandoverMode::Blend });
        let mut last: Option<f64> = None;
        let mut now = 0;
        for (gap, age, rows) in chunks {
            let request = scheduler.on_request(ms(now), ms(now - age));
            let before = scheduler.command(ms(now)).map(|sample| sample.positions[0]);
            scheduler.on_chunk(ms(now), chunk(ms(now - age), request.sequence, &rows));
            let after = command(&mut scheduler, now);
            prop_assert!(before.is_none_or(|before| before == after), "{:?} {}", before, after);
            for _ in 0..gap {
                now += 1;
                let position = command(&mut scheduler, now);
                let plan = scheduler.plan().unwrap();
                // Rows span 4 and are 100 ms apart; the shortest ramp takes 100 ms.
                let steepest = 4.0 / 100.0 * (1.0 + 1.5 * plan.chunks().count() as f64);
                prop_assert!(last.is_none_or(|last| (position - last).abs() <= steepest + 1e-12));
                last = Some(position);
            }
        }
    }
}
