// SPDX-License-Identifier: GPL-2.0
/*
 * Loads that no system call makes, done while the module is being loaded, an exact number of
 * times; it never stays loaded. On vmap_block.lock: maps and unmaps one page with vm_map_ram() in
 * each of some threads. On the trylock of vmap_area_lock: asks what a vmalloc address is.
 */
#include <linux/completion.h>
#include <linux/kthread.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/vmalloc.h>

static unsigned int loops = 1000;
module_param(loops, uint, 0);
MODULE_PARM_DESC(loops, "Pairs of vm_map_ram() and vm_unmap_ram() in each thread");

static unsigned int threads = 1;
module_param(threads, uint, 0);
MODULE_PARM_DESC(threads, "Threads");

static unsigned int aliases = 1;
module_param(aliases, uint, 0);
MODULE_PARM_DESC(aliases, "Calls of vm_unmap_aliases() at the end");

static unsigned int dumps;
module_param(dumps, uint, 0);
MODULE_PARM_DESC(dumps, "Calls of mem_dump_obj() on a vmalloc address: each tries a lock");

static DECLARE_COMPLETION(all_done);
static atomic_t running = ATOMIC_INIT(1);
static atomic_t failed = ATOMIC_INIT(0);

static void one_done(void)
{
	if (atomic_dec_and_test(&running))
		complete(&all_done);
}

static int work(void *unused)
{
	struct page *page = alloc_page(GFP_KERNEL);
	unsigned int i;

	for (i = 0; page && i < loops; i++) {
		void *address = vm_map_ram(&page, 1, NUMA_NO_NODE);

		if (!address)
			break;
		vm_unmap_ram(address, 1);
	}
	if (!page || i < loops)
		atomic_inc(&failed);
	if (page)
		__free_page(page);
	one_done();
	return 0;
}

static void dump(void)
{
	void *object = vmalloc(PAGE_SIZE);
	unsigned int i;

	if (!object) {
		atomic_inc(&failed);
		return;
	}
	for (i = 0; i < dumps; i++)
		mem_dump_obj(object);
	vfree(object);
}

static int __init vmap_ram_init(void)
{
	unsigned int i;

	for (i = 0; i < threads; i++) {
		atomic_inc(&running);
		if (IS_ERR(kthread_run(work, NULL, "vmap_ram/%u", i))) {
			atomic_inc(&failed);
			one_done();
		}
	}
	one_done();
	wait_for_completion(&all_done);
	for (i = 0; i < aliases; i++)
		vm_unmap_aliases();
	dump();
	/* Refused, so that it can be loaded again. */
	return atomic_read(&failed) ? -ENOMEM : -EAGAIN;
}
module_init(vmap_ram_init);

MODULE_DESCRIPTION("A load on vmap_block.lock");
MODULE_LICENSE("GPL");
