// SPDX-License-Identifier: GPL-2.0
/*
 * Takes locks of vmalloc where a lock that sleeps would not be legal, on purpose and an exact number
 * of times: looks an area up, or frees one, in each of the contexts that a kernel has. It never
 * stays loaded.
 */
#include <linux/interrupt.h>
#include <linux/irq_work.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/preempt.h>
#include <linux/rcupdate.h>
#include <linux/vmalloc.h>

static unsigned long find;
module_param(find, ulong, 0);
MODULE_PARM_DESC(find, "Address of find_vm_area(), which is not exported; zero to free instead");

static char *context = "task";
module_param(context, charp, 0);
MODULE_PARM_DESC(context, "task, preempt, rcu, bh, irqs, softirq or hardirq");

static unsigned int loops = 100;
module_param(loops, uint, 0);
MODULE_PARM_DESC(loops, "How often");

static void *area;

static void act(void)
{
	struct vm_struct *(*look_up)(const void *) = (void *)find;

	if (look_up)
		look_up(area);
	else
		vfree(area);
}

static void in_softirq_context(struct tasklet_struct *unused)
{
	act();
}

static void in_hardirq_context(struct irq_work *unused)
{
	act();
}

static int once(void)
{
	DECLARE_TASKLET(tasklet, in_softirq_context);
	struct irq_work work = IRQ_WORK_INIT_HARD(in_hardirq_context);
	unsigned long flags;

	if (!strcmp(context, "task")) {
		act();
	} else if (!strcmp(context, "preempt")) {
		preempt_disable();
		act();
		preempt_enable();
	} else if (!strcmp(context, "rcu")) {
		rcu_read_lock();
		act();
		rcu_read_unlock();
	} else if (!strcmp(context, "bh")) {
		local_bh_disable();
		act();
		local_bh_enable();
	} else if (!strcmp(context, "irqs")) {
		local_irq_save(flags);
		act();
		local_irq_restore(flags);
	} else if (!strcmp(context, "softirq")) {
		/*
		 * Here, and not in an interrupt of a kprobe's program, in
		 * which the kernel runs no other.
		 */
		local_bh_disable();
		tasklet_schedule(&tasklet);
		local_bh_enable();
		tasklet_kill(&tasklet);
	} else if (!strcmp(context, "hardirq")) {
		irq_work_queue(&work);
		irq_work_sync(&work);
	} else {
		return -EINVAL;
	}
	return 0;
}

static int __init contexts_init(void)
{
	unsigned int i;
	int error = 0;

	for (i = 0; i < loops && !error; i++) {
		if (!area || !find)
			area = vmalloc(PAGE_SIZE);
		if (!area)
			return -ENOMEM;
		error = once();
	}
	if (find)
		vfree(area);
	/* Refused, so that it can be loaded again. */
	return error ? error : -EAGAIN;
}
module_init(contexts_init);

MODULE_DESCRIPTION("Locks of vmalloc in every context");
MODULE_LICENSE("GPL");
