// SPDX-License-Identifier: GPL-2.0
/*
 * Takes one of the kernel's own locks, by its address, while nobody else wants it, and holds it for
 * a thousand instructions: what a tracer says of such a hold beyond that is the tracer. Says how
 * many cycles that took, and how many it takes without the thousand. Of a lock whose holder may
 * sleep, the holder can leave its CPU instead. It never stays loaded.
 */
#include <linux/module.h>
#include <linux/mutex.h>
#include <linux/rwsem.h>
#include <linux/sched.h>
#include <linux/spinlock.h>
#include <linux/timex.h>

static unsigned long lock;
module_param(lock, ulong, 0);
MODULE_PARM_DESC(lock, "Address of the lock");

static char *kind = "spinlock";
module_param(kind, charp, 0);
MODULE_PARM_DESC(kind, "spinlock, rwsem or mutex");

static unsigned int loops = 10000;
module_param(loops, uint, 0);
MODULE_PARM_DESC(loops, "How often it is taken");

static bool compare;
module_param(compare, bool, 0);
MODULE_PARM_DESC(compare, "Whether to take it as often without the thousand instructions");

static char *during = "work";
module_param(during, charp, 0);
MODULE_PARM_DESC(during, "work, nap, or downgrade, after which a writer naps as a reader");

#define THOUSAND() asm volatile(".rept 1000\n\tnop\n\t.endr")
#define NOTHING() asm volatile("")
#define NAP() schedule_timeout_uninterruptible(1)

#define TIMED(take, release, work)				\
({								\
	cycles_t begin = get_cycles();				\
	unsigned int i;						\
								\
	for (i = 0; i < loops; i++) {				\
		take;						\
		work();						\
		release;					\
	}							\
	get_cycles() - begin;					\
})

#define SAY(take, release)					\
do {								\
	cycles_t with = TIMED(take, release, THOUSAND);		\
	cycles_t without = compare ? TIMED(take, release, NOTHING) : 0; \
								\
	pr_info("known_hold: %u loops, %llu cycles, %llu without the hold\n", \
		loops, (u64)with, (u64)without);		\
} while (0)

static int __init known_hold_init(void)
{
	if (!lock)
		return -EINVAL;
	if (!strcmp(kind, "spinlock")) {
		spinlock_t *spinlock = (spinlock_t *)lock;

		SAY(spin_lock(spinlock), spin_unlock(spinlock));
	} else if (!strcmp(kind, "rwsem")) {
		struct rw_semaphore *rwsem = (struct rw_semaphore *)lock;

		if (!strcmp(during, "nap"))
			TIMED(down_write(rwsem), up_write(rwsem), NAP);
		else if (!strcmp(during, "downgrade"))
			TIMED(({ down_write(rwsem); downgrade_write(rwsem); }),
			      up_read(rwsem), NAP);
		else
			SAY(down_write(rwsem), up_write(rwsem));
	} else if (!strcmp(kind, "mutex")) {
		struct mutex *mutex = (struct mutex *)lock;

		if (!strcmp(during, "nap"))
			TIMED(mutex_lock(mutex), mutex_unlock(mutex), NAP);
		else
			SAY(mutex_lock(mutex), mutex_unlock(mutex));
	} else {
		return -EINVAL;
	}
	/* Refused, so that it can be loaded again. */
	return -EAGAIN;
}
module_init(known_hold_init);

MODULE_DESCRIPTION("An uncontended hold of known length");
MODULE_LICENSE("GPL");
