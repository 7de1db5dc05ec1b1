//! Arenas, buffers and pools.

use oxblock_mem::{Arena, ArenaOptions, IoVector, MemError, Memory, Pool};

fn arena(size: usize) -> Result<(Memory, Arena), MemError> {
    let memory = Memory::new();
    let arena = memory.add_arena(&ArenaOptions::new(size))?;
    Ok((memory, arena))
}

#[test]
fn arena_buffers_are_zeroed_aligned_and_private() -> Result<(), MemError> {
    let (_memory, arena) = arena(8 << 20)?;
    let mut first = arena.alloc(5000, 4096)?;
    assert!(first.addr().addr().is_multiple_of(4096));
    first.fill(0, 5000, 7);
    drop(first);
    let again = arena.alloc(5000, 4096)?;
    assert_eq!(again.as_slice(), Some(&[0; 5000][..]));
    Ok(())
}

#[test]
fn a_pool_runs_dry_and_refills() -> Result<(), MemError> {
    let (_memory, arena) = arena(1 << 20)?;
    let pool = Pool::new(&arena, 4096, 4)?;
    let bufs: Vec<_> = std::iter::from_fn(|| pool.take()).collect();
    assert_eq!((bufs.len(), pool.available()), (4, 0));
    drop(bufs);
    assert_eq!(pool.available(), 4);
    Ok(())
}

#[test]
fn lists_slice_and_join() -> Result<(), MemError> {
    let (_memory, arena) = arena(1 << 20)?;
    let mut list = IoVector::from(arena.alloc(100, 1)?);
    list.join(IoVector::from(arena.alloc(50, 1)?));
    list.write_at(90, &[1; 20]);
    let tail = list.split_off(95);
    assert_eq!((list.len(), tail.len()), (95, 55));
    assert_eq!(tail.view(0, 55).pieces().count(), 2);
    assert!(tail.view(0, 15).is_all(1));
    Ok(())
}
