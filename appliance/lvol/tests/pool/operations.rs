//! Operations that somebody outside drives, deletions that are shown, and the walk over what is mapped.

use lvol::{LvolError, MapCursor, MappedRun, Operation, OperationKind, OperationState};

use crate::rig::Rig;

const CLUSTER: u64 = 64 << 10;

fn operation(rig: &mut Rig, id: u64) -> Operation {
    let promise = rig.pool.operations();
    let all = rig.wait(promise).unwrap();
    let found = all.into_iter().find(|operation| operation.id == id);
    found.expect("the pool remembers it")
}

fn begin(rig: &mut Rig, detail: &str) -> Result<u64, LvolError> {
    let kind = OperationKind::Import;
    let promise = rig.pool.begin(kind, "v", 100, detail.to_owned());
    rig.wait(promise)
}

fn end(rig: &mut Rig, id: u64, result: Result<&str, &str>) {
    let result = result.map(str::to_owned).map_err(str::to_owned);
    let promise = rig.pool.end(id, result);
    rig.wait(promise).unwrap();
}

fn cut_power(rig: Rig) -> Rig {
    let image = rig.drive.cut(0);
    Rig::open_image(image, 3).unwrap()
}

#[test]
fn a_driven_operation_survives_a_power_cut_with_its_detail() {
    let mut rig = Rig::create(8, 1);
    let id = begin(&mut rig, "where it stands").unwrap();
    let promise = rig.pool.progress(id, 40);
    assert_eq!(rig.wait(promise).unwrap(), OperationState::Running);
    assert_eq!(operation(&mut rig, id).done, 40);
    // Nobody has committed that.
    let mut rig = cut_power(rig);
    let found = operation(&mut rig, id);
    assert_eq!((found.done, found.total), (0, 100));
    assert_eq!(found.detail, "where it stands");
    assert_eq!(
        (found.kind, found.text.as_str()),
        (OperationKind::Import, "")
    );
    let promise = rig.pool.progress_with(id, 70, "further".to_owned());
    rig.wait(promise).unwrap();
    rig.commit();
    let mut rig = cut_power(rig);
    let found = operation(&mut rig, id);
    assert_eq!((found.done, found.detail.as_str()), (70, "further"));
    end(&mut rig, id, Ok("all is well"));
    let mut rig = cut_power(rig);
    let found = operation(&mut rig, id);
    assert_eq!(found.state, OperationState::Done);
    assert_eq!((found.done, found.text.as_str()), (100, "all is well"));
    assert_eq!(found.detail, "");
}

#[test]
fn a_driver_learns_that_its_operation_was_cancelled_and_ends_it() {
    let mut rig = Rig::create(8, 1);
    let id = begin(&mut rig, "").unwrap();
    let promise = rig.pool.cancel(id);
    rig.wait(promise).unwrap();
    // Also after a restart: what it has made is not to stay.
    let mut rig = cut_power(rig);
    let promise = rig.pool.progress(id, 1);
    assert_eq!(rig.wait(promise).unwrap(), OperationState::Cancelling);
    end(&mut rig, id, Err("nothing is left of it"));
    assert_eq!(operation(&mut rig, id).state, OperationState::Cancelled);
    // It has ended: that is final.
    end(&mut rig, id, Ok("late"));
    let found = operation(&mut rig, id);
    assert_eq!(found.text, "nothing is left of it");
    let promise = rig.pool.progress(id, 1);
    assert_eq!(rig.wait(promise).unwrap(), OperationState::Cancelled);
}

#[test]
fn only_so_many_driven_operations_are_under_way() {
    let mut rig = Rig::create(8, 1);
    for _ in 0..64 {
        begin(&mut rig, "").unwrap();
    }
    let error = begin(&mut rig, "").unwrap_err();
    assert!(matches!(error, LvolError::Refused { .. }), "{error}");
    end(&mut rig, 1, Err("failed"));
    begin(&mut rig, "").unwrap();
    let promise = rig
        .pool
        .begin(OperationKind::Inflate, "v", 1, String::new());
    assert!(matches!(rig.wait(promise), Err(LvolError::Refused { .. })));
    let promise = rig
        .pool
        .begin(OperationKind::Scrub, "", 1, "x".repeat((256 << 10) + 1));
    assert!(matches!(rig.wait(promise), Err(LvolError::Refused { .. })));
    let promise = rig.pool.progress(999, 1);
    assert!(matches!(rig.wait(promise), Err(LvolError::NotFound { .. })));
}

#[test]
fn a_deletion_is_an_operation_when_it_gives_something_back() {
    let mut rig = Rig::create(8, 1);
    rig.create_volume("empty", CLUSTER);
    assert_eq!(rig.delete_shown("empty").unwrap(), None);
    rig.create_volume("v", 4 * CLUSTER);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &vec![1; 2 * CLUSTER as usize]);
    rig.flush(&mut channel);
    drop(channel);
    // In one step of the worker: before the collector has its turn.
    let (deleted, cancelled) = (rig.pool.delete("v"), rig.pool.cancel(1));
    let id = rig.wait(deleted).unwrap().unwrap();
    assert_eq!(id, 1);
    assert!(matches!(
        rig.wait(cancelled),
        Err(LvolError::Refused { .. })
    ));
    let shown = operation(&mut rig, id);
    assert_eq!((shown.kind, shown.total), (OperationKind::Delete, 2));
    assert_eq!(shown.subject, "v");
    let mut rig = cut_power(rig);
    rig.settle();
    let ended = operation(&mut rig, id);
    assert_eq!((ended.state, ended.done), (OperationState::Done, 2));
}

#[test]
fn the_deletion_of_what_several_lie_on_is_not_waited_for() {
    let mut rig = Rig::create(8, 1);
    rig.create_volume("v", 4 * CLUSTER);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &vec![1; CLUSTER as usize]);
    rig.flush(&mut channel);
    drop(channel);
    rig.snapshot(&[("v", "s")]).unwrap();
    rig.clone_snapshot("v@s", "c").unwrap();
    let id = rig.delete_shown("v@s").unwrap().unwrap();
    let shown = operation(&mut rig, id);
    assert_eq!(shown.state, OperationState::Done);
    assert!(shown.text.contains("2 others lie on it"), "{}", shown.text);
}

/// All runs, asked for piece by piece.
fn runs(rig: &mut Rig) -> (Vec<MappedRun>, u64) {
    let (mut all, mut clusters, mut next) = (Vec::new(), 0, Some(MapCursor::default()));
    while let Some(from) = next {
        let promise = rig.pool.mapped(from, 1);
        let part = rig.wait(promise).unwrap();
        assert!(part.next.is_none_or(|next| next > from));
        all.extend(part.runs);
        clusters += part.clusters;
        next = part.next;
    }
    (all, clusters)
}

#[test]
fn a_walk_over_what_is_mapped_names_the_owner_of_each_run() {
    let mut rig = Rig::create(64, 1);
    assert_eq!(runs(&mut rig), (Vec::new(), 0));
    // Two pieces.
    rig.create_volume("v", 256 * CLUSTER);
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 8192, &[1; 4096]);
    rig.write(&mut channel, 200 * CLUSTER, &[2; 8192]);
    rig.flush(&mut channel);
    drop(channel);
    rig.snapshot(&[("v", "s")]).unwrap();
    let mut channel = rig.channel("v");
    rig.write(&mut channel, 0, &[3; 4096]);
    rig.flush(&mut channel);
    drop(channel);
    let (found, clusters) = runs(&mut rig);
    assert_eq!(clusters, 3);
    let owners: Vec<_> = found
        .iter()
        .map(|run| (run.owner.as_str(), run.offset, run.len))
        .collect();
    let wanted = [
        ("v@s", 8192, 4096),
        ("v@s", 200 * CLUSTER, 8192),
        ("v", 0, 4096),
    ];
    assert_eq!(owners, wanted);
    // What the device holds there is what was written.
    let image = rig.drive.cut(0);
    for (run, byte) in found.iter().zip([1, 2, 3]) {
        let mut bytes = vec![0; run.len as usize];
        image.read_at(run.device_offset, &mut bytes);
        assert!(bytes.iter().all(|found| *found == byte), "{run:?}");
    }
    // The name goes, the data are still seen.
    rig.clone_snapshot("v@s", "c").unwrap();
    rig.delete("v@s").unwrap();
    rig.commit();
    let (found, _) = runs(&mut rig);
    assert!(found.iter().all(|run| !run.owner.is_empty()), "{found:?}");
}
