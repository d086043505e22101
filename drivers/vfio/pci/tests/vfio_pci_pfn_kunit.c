// SPDX-License-Identifier: GPL-2.0-only
/*
 * KUnit tests of the lookup of PFNs
 *
 * Addresses, offsets and lengths are in pages here.  The lookup does not know
 * what is behind a PFN, nor which orders the MMU has, so neither do the tests.
 */
#include <kunit/test.h>

#include <linux/bits.h>
#include <linux/limits.h>
#include <linux/minmax.h>
#include <linux/pfn.h>
#include <linux/prandom.h>
#include <linux/slab.h>

#include "../vfio_pci_priv.h"

/* The orders of huge pages on x86, or what fits into a range on 32 bit */
#define PMD		9
#define PMD_PAGES	BIT(PMD)
#define PUD		MIN(18, BITS_PER_LONG - PAGE_SHIFT - 2)
#define PUD_PAGES	BIT(PUD)

/* Nothing can end behind this PFN, its page itself cannot be used */
#define TOP		((unsigned long)MIN(PHYS_ADDR_MAX >> PAGE_SHIFT,	\
					    (phys_addr_t)ULONG_MAX))
/* The most that can be exported */
#define MOST		((SIZE_MAX >> 1) >> PAGE_SHIFT)
#define MOST_ORDER	(BITS_PER_LONG - PAGE_SHIFT - 2)

struct pfn_range {
	unsigned long pfn;
	unsigned long nr;
};

#define MAX_RANGES	6

struct buffer {
	struct phys_vec *phys_vec;
	u64 *range_start;
	u32 nr_ranges;
};

KUNIT_DEFINE_ACTION_WRAPPER(kvfree_action, kvfree, const void *);

static void *alloc_array(struct kunit *test, size_t n, size_t size)
{
	void *array = kvcalloc(n, size, GFP_KERNEL);

	KUNIT_ASSERT_NOT_NULL(test, array);
	KUNIT_ASSERT_EQ(test, 0, kunit_add_action_or_reset(test, kvfree_action,
							   array));
	return array;
}

static void init_buffer(struct kunit *test, struct buffer *buf, u32 max_ranges)
{
	buf->phys_vec = alloc_array(test, max_ranges, sizeof(*buf->phys_vec));
	buf->range_start = alloc_array(test, max_ranges,
				       sizeof(*buf->range_start));
	buf->nr_ranges = 0;
}

static void append_range(struct buffer *buf, unsigned long pfn, unsigned long nr)
{
	buf->phys_vec[buf->nr_ranges].paddr = PFN_PHYS(pfn);
	buf->phys_vec[buf->nr_ranges].len = (size_t)nr << PAGE_SHIFT;
	buf->nr_ranges++;
}

static void append_ranges(struct buffer *buf, const struct pfn_range *ranges)
{
	u32 i;

	for (i = 0; i < MAX_RANGES && ranges[i].nr; i++)
		append_range(buf, ranges[i].pfn, ranges[i].nr);
}

/* What is done to the ranges when a DMABUF is made */
static void finish_buffer(struct buffer *buf)
{
	u64 offset = 0;
	u32 i;

	for (i = 0; i < buf->nr_ranges; i++) {
		buf->range_start[i] = offset;
		offset += buf->phys_vec[i].len;
	}
	buf->nr_ranges = vfio_pci_merge_ranges(buf->phys_vec, buf->range_start,
					       buf->nr_ranges);
}

static int find(const struct buffer *buf, u64 offset, unsigned int order,
		unsigned long *pfn)
{
	/* A single range needs no index */
	return vfio_pci_find_pfn(buf->phys_vec,
				 buf->nr_ranges > 1 ? buf->range_start : NULL,
				 buf->nr_ranges, offset << PAGE_SHIFT, order,
				 pfn);
}

struct merge_case {
	const char *name;
	struct pfn_range in[MAX_RANGES];
	struct pfn_range out[MAX_RANGES];
};

static const struct merge_case merge_cases[] = {
	{
		.name = "one range",
		.in = { { 100, 3 } },
		.out = { { 100, 3 } },
	}, {
		.name = "two adjacent",
		.in = { { 100, 3 }, { 103, 2 } },
		.out = { { 100, 5 } },
	}, {
		.name = "all adjacent",
		.in = { { 100, 1 }, { 101, 2 }, { 103, 3 }, { 106, 4 },
			{ 110, 5 }, { 115, 6 } },
		.out = { { 100, 21 } },
	}, {
		.name = "adjacent from PFN 0 on",
		.in = { { 0, 1 }, { 1, 1 } },
		.out = { { 0, 2 } },
	}, {
		.name = "adjacent below the top",
		.in = { { TOP - 5, 2 }, { TOP - 3, 3 } },
		.out = { { TOP - 5, 5 } },
	}, {
		.name = "adjacent but in reverse",
		.in = { { 103, 2 }, { 100, 3 } },
		.out = { { 103, 2 }, { 100, 3 } },
	}, {
		.name = "a gap of one page",
		.in = { { 100, 3 }, { 104, 2 } },
		.out = { { 100, 3 }, { 104, 2 } },
	}, {
		.name = "an overlap of one page",
		.in = { { 100, 3 }, { 102, 2 } },
		.out = { { 100, 3 }, { 102, 2 } },
	}, {
		.name = "one inside the other",
		.in = { { 100, 5 }, { 101, 2 } },
		.out = { { 100, 5 }, { 101, 2 } },
	}, {
		.name = "twice the same",
		.in = { { 100, 3 }, { 100, 3 } },
		.out = { { 100, 3 }, { 100, 3 } },
	}, {
		.name = "the same start",
		.in = { { 100, 3 }, { 100, 2 } },
		.out = { { 100, 3 }, { 100, 2 } },
	}, {
		.name = "the same end",
		.in = { { 100, 3 }, { 101, 2 } },
		.out = { { 100, 3 }, { 101, 2 } },
	}, {
		.name = "adjacent to the last but one",
		.in = { { 100, 3 }, { 200, 2 }, { 103, 2 } },
		.out = { { 100, 3 }, { 200, 2 }, { 103, 2 } },
	}, {
		.name = "two pairs",
		.in = { { 100, 1 }, { 101, 2 }, { 200, 1 }, { 201, 2 } },
		.out = { { 100, 3 }, { 200, 3 } },
	}, {
		.name = "a pair between single ones",
		.in = { { 300, 1 }, { 100, 1 }, { 101, 2 }, { 301, 1 } },
		.out = { { 300, 1 }, { 100, 3 }, { 301, 1 } },
	}, {
		.name = "twice the same pair",
		.in = { { 100, 1 }, { 101, 2 }, { 100, 1 }, { 101, 2 } },
		.out = { { 100, 3 }, { 100, 3 } },
	},
};

KUNIT_ARRAY_PARAM_DESC(merge, merge_cases, name);

static void vfio_pci_merge_ranges_table(struct kunit *test)
{
	const struct merge_case *param = test->param_value;
	struct buffer buf, want;
	u64 start = 0;
	u32 i;

	init_buffer(test, &buf, MAX_RANGES);
	append_ranges(&buf, param->in);
	finish_buffer(&buf);
	init_buffer(test, &want, MAX_RANGES);
	append_ranges(&want, param->out);

	KUNIT_ASSERT_EQ(test, buf.nr_ranges, want.nr_ranges);
	for (i = 0; i < want.nr_ranges; i++) {
		KUNIT_EXPECT_EQ(test, buf.phys_vec[i].paddr,
				want.phys_vec[i].paddr);
		KUNIT_EXPECT_EQ(test, buf.phys_vec[i].len,
				want.phys_vec[i].len);
		KUNIT_EXPECT_EQ(test, buf.range_start[i], start);
		start += want.phys_vec[i].len;
	}
}

/* The sum may be wider than the length of a range */
static void vfio_pci_merge_ranges_wide(struct kunit *test)
{
	struct buffer buf;
	u32 i;

	init_buffer(test, &buf, MAX_RANGES);
	for (i = 0; i < MAX_RANGES; i++)
		append_range(&buf, 0, PUD_PAGES);
	finish_buffer(&buf);

	KUNIT_ASSERT_EQ(test, buf.nr_ranges, MAX_RANGES);
	for (i = 0; i < MAX_RANGES; i++) {
		unsigned long pfn = 0;

		KUNIT_EXPECT_EQ(test, buf.range_start[i],
				(u64)i << (PUD + PAGE_SHIFT));
		KUNIT_EXPECT_EQ(test, 0, find(&buf, ((u64)i << PUD) + 7, 0,
					      &pfn));
		KUNIT_EXPECT_EQ(test, pfn, 7);
	}
}

struct find_case {
	const char *name;
	struct pfn_range ranges[MAX_RANGES];
	u64 offset;
	unsigned int order;
	int ret;
	unsigned long pfn;
};

static const struct find_case find_cases[] = {
	{
		.name = "first page",
		.ranges = { { 100, 3 } },
		.pfn = 100,
	}, {
		.name = "last page",
		.ranges = { { 100, 3 } },
		.offset = 2,
		.pfn = 102,
	}, {
		.name = "the only page",
		.ranges = { { 100, 1 } },
		.pfn = 100,
	}, {
		.name = "PFN 0",
		.ranges = { { 0, 1 } },
		.pfn = 0,
	}, {
		.name = "first page behind the end",
		.ranges = { { 100, 3 } },
		.offset = 3,
		.ret = -ERANGE,
	}, {
		.name = "behind the end of two ranges",
		.ranges = { { 100, 3 }, { 200, 2 } },
		.offset = 5,
		.ret = -ERANGE,
	}, {
		.name = "far behind the end",
		.ranges = { { 100, 3 } },
		.offset = U64_MAX >> PAGE_SHIFT,
		.ret = -ERANGE,
	}, {
		.name = "huge page far behind the end",
		.ranges = { { 100, 3 } },
		.offset = ALIGN_DOWN(U64_MAX >> PAGE_SHIFT, PMD_PAGES),
		.order = PMD,
		.ret = -ERANGE,
	}, {
		.name = "last page of the first range",
		.ranges = { { 100, 3 }, { 200, 2 } },
		.offset = 2,
		.pfn = 102,
	}, {
		.name = "first page of the second range",
		.ranges = { { 100, 3 }, { 200, 2 } },
		.offset = 3,
		.pfn = 200,
	}, {
		.name = "last page of the second range",
		.ranges = { { 100, 3 }, { 200, 2 } },
		.offset = 4,
		.pfn = 201,
	}, {
		.name = "behind a range of one page",
		.ranges = { { 300, 1 }, { 200, 1 }, { 100, 1 } },
		.offset = 1,
		.pfn = 200,
	}, {
		.name = "ranges in reverse: the first",
		.ranges = { { 103, 2 }, { 100, 3 } },
		.offset = 1,
		.pfn = 104,
	}, {
		.name = "ranges in reverse: the second",
		.ranges = { { 103, 2 }, { 100, 3 } },
		.offset = 2,
		.pfn = 100,
	}, {
		.name = "twice the same: the second",
		.ranges = { { 100, 3 }, { 100, 3 } },
		.offset = 4,
		.pfn = 101,
	}, {
		.name = "overlapping: the second",
		.ranges = { { 100, 3 }, { 101, 3 } },
		.offset = 3,
		.pfn = 101,
	}, {
		.name = "merged: across the seam",
		.ranges = { { 100, 3 }, { 103, 2 } },
		.offset = 3,
		.pfn = 103,
	}, {
		.name = "order 1, aligned",
		.ranges = { { 100, 2 } },
		.order = 1,
		.pfn = 100,
	}, {
		.name = "order 1, misaligned",
		.ranges = { { 101, 2 } },
		.order = 1,
		.ret = -EAGAIN,
	}, {
		.name = "order 1, aligned in memory only",
		.ranges = { { 101, 3 } },
		.offset = 1,
		.order = 1,
		.pfn = 102,
	}, {
		.name = "order 1, too short",
		.ranges = { { 100, 1 } },
		.order = 1,
		.ret = -EAGAIN,
	}, {
		.name = "order 1, behind the end",
		.ranges = { { 100, 2 } },
		.offset = 2,
		.order = 1,
		.ret = -ERANGE,
	}, {
		.name = "PMD, fits exactly",
		.ranges = { { PMD_PAGES, PMD_PAGES } },
		.order = PMD,
		.pfn = PMD_PAGES,
	}, {
		.name = "PMD, one page too short",
		.ranges = { { PMD_PAGES, PMD_PAGES - 1 } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, one page too high",
		.ranges = { { PMD_PAGES + 1, PMD_PAGES } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, one page too low",
		.ranges = { { PMD_PAGES - 1, PMD_PAGES + 1 } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, behind a head of one page",
		.ranges = { { PMD_PAGES - 1, PMD_PAGES + 1 } },
		.offset = 1,
		.order = PMD,
		.pfn = PMD_PAGES,
	}, {
		.name = "PMD, at the last page of the head",
		.ranges = { { PMD_PAGES - 2, PMD_PAGES + 2 } },
		.offset = 1,
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, before a tail",
		.ranges = { { PMD_PAGES, 2 * PMD_PAGES + 1 } },
		.offset = PMD_PAGES,
		.order = PMD,
		.pfn = 2 * PMD_PAGES,
	}, {
		.name = "PMD, tail of one page",
		.ranges = { { PMD_PAGES, PMD_PAGES + 1 } },
		.offset = PMD_PAGES,
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, tail that lacks one page",
		.ranges = { { PMD_PAGES, 2 * PMD_PAGES - 1 } },
		.offset = PMD_PAGES,
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, behind the end",
		.ranges = { { PMD_PAGES, PMD_PAGES } },
		.offset = PMD_PAGES,
		.order = PMD,
		.ret = -ERANGE,
	}, {
		.name = "PMD, in the second range",
		.ranges = { { 100, 1 }, { PMD_PAGES, PMD_PAGES } },
		.offset = 1,
		.order = PMD,
		.pfn = PMD_PAGES,
	}, {
		.name = "PMD, from one range into the next",
		.ranges = { { PMD_PAGES, PMD_PAGES / 2 },
			    { 2 * PMD_PAGES, PMD_PAGES } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, first range lacks one page",
		.ranges = { { PMD_PAGES, PMD_PAGES - 1 },
			    { 2 * PMD_PAGES, PMD_PAGES } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, in two that were merged",
		.ranges = { { PMD_PAGES, PMD_PAGES / 2 },
			    { PMD_PAGES + PMD_PAGES / 2, PMD_PAGES / 2 } },
		.order = PMD,
		.pfn = PMD_PAGES,
	}, {
		.name = "PMD, in two halves in reverse",
		.ranges = { { PMD_PAGES + PMD_PAGES / 2, PMD_PAGES / 2 },
			    { PMD_PAGES, PMD_PAGES / 2 } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PUD, fits exactly",
		.ranges = { { PUD_PAGES, PUD_PAGES } },
		.order = PUD,
		.pfn = PUD_PAGES,
	}, {
		.name = "PUD, one page too short",
		.ranges = { { PUD_PAGES, PUD_PAGES - 1 } },
		.order = PUD,
		.ret = -EAGAIN,
	}, {
		.name = "PUD, aligned to a PMD",
		.ranges = { { PMD_PAGES, PUD_PAGES } },
		.order = PUD,
		.ret = -EAGAIN,
	}, {
		.name = "PUD, behind a head of a PMD",
		.ranges = { { PUD_PAGES - PMD_PAGES, PMD_PAGES + PUD_PAGES } },
		.offset = PMD_PAGES,
		.order = PUD,
		.pfn = PUD_PAGES,
	}, {
		.name = "PUD, tail of a PMD",
		.ranges = { { PUD_PAGES, PUD_PAGES + PMD_PAGES } },
		.offset = PUD_PAGES,
		.order = PUD,
		.ret = -EAGAIN,
	}, {
		.name = "PUD, the PMD in its tail",
		.ranges = { { PUD_PAGES, PUD_PAGES + PMD_PAGES } },
		.offset = PUD_PAGES,
		.order = PMD,
		.pfn = 2 * PUD_PAGES,
	}, {
		.name = "PUD, in two that were merged",
		.ranges = { { PUD_PAGES, PMD_PAGES },
			    { PUD_PAGES + PMD_PAGES, PUD_PAGES - PMD_PAGES } },
		.order = PUD,
		.pfn = PUD_PAGES,
	}, {
		.name = "PUD, from one range into the next",
		.ranges = { { PUD_PAGES, PUD_PAGES - PMD_PAGES },
			    { 2 * PUD_PAGES, PUD_PAGES } },
		.order = PUD,
		.ret = -EAGAIN,
	}, {
		.name = "last page below the top",
		.ranges = { { TOP - 3, 3 } },
		.offset = 2,
		.pfn = TOP - 1,
	}, {
		.name = "behind the last page below the top",
		.ranges = { { TOP - 3, 3 } },
		.offset = 3,
		.ret = -ERANGE,
	}, {
		.name = "PMD, tail below the top",
		.ranges = { { TOP - (PMD_PAGES - 1), PMD_PAGES - 1 } },
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "PMD, last one below the top",
		.ranges = { { TOP - (2 * PMD_PAGES - 1), 2 * PMD_PAGES - 1 } },
		.order = PMD,
		.pfn = TOP - (2 * PMD_PAGES - 1),
	}, {
		.name = "the longest range, last page",
		.ranges = { { 0, MOST } },
		.offset = MOST - 1,
		.pfn = MOST - 1,
	}, {
		.name = "the longest range, behind the end",
		.ranges = { { 0, MOST } },
		.offset = MOST,
		.ret = -ERANGE,
	}, {
		.name = "the longest range, last PMD",
		.ranges = { { 0, MOST } },
		.offset = MOST + 1 - 2 * PMD_PAGES,
		.order = PMD,
		.pfn = MOST + 1 - 2 * PMD_PAGES,
	}, {
		.name = "the longest range, tail",
		.ranges = { { 0, MOST } },
		.offset = MOST + 1 - PMD_PAGES,
		.order = PMD,
		.ret = -EAGAIN,
	}, {
		.name = "the longest range, the largest page",
		.ranges = { { 0, MOST } },
		.order = MOST_ORDER,
		.pfn = 0,
	}, {
		.name = "the longest range, no second one of that",
		.ranges = { { 0, MOST } },
		.offset = 1UL << MOST_ORDER,
		.order = MOST_ORDER,
		.ret = -EAGAIN,
	}, {
		.name = "behind a long range",
		.ranges = { { 0, MOST / 2 }, { 100, MOST / 2 } },
		.offset = MOST / 2 + 5,
		.pfn = 105,
	},
};

KUNIT_ARRAY_PARAM_DESC(find, find_cases, name);

static void vfio_pci_find_pfn_table(struct kunit *test)
{
	const struct find_case *param = test->param_value;
	unsigned long pfn = ULONG_MAX;
	struct buffer buf;

	init_buffer(test, &buf, MAX_RANGES);
	append_ranges(&buf, param->ranges);
	finish_buffer(&buf);

	KUNIT_EXPECT_EQ(test, param->ret, find(&buf, param->offset,
					       param->order, &pfn));
	if (!param->ret)
		KUNIT_EXPECT_EQ(test, pfn, param->pfn);
}

struct count_case {
	const char *name;
	u32 nr_ranges;
};

static const struct count_case count_cases[] = {
	{ "1 range", 1 },
	{ "2 ranges", 2 },
	{ "3 ranges", 3 },
	{ "64 ranges", 64 },
	{ "4096 ranges", 4096 },
	{ "65536 ranges", 65536 },
};

KUNIT_ARRAY_PARAM_DESC(count, count_cases, name);

#define STEP	8	/* PFNs from one range to the next */

static void expect_page(struct kunit *test, const struct buffer *buf,
			u64 offset, unsigned long want)
{
	unsigned long pfn = ULONG_MAX;
	int ret = find(buf, offset, 0, &pfn);

	KUNIT_ASSERT_TRUE_MSG(test, !ret && pfn == want,
			      "%d, PFN 0x%lx for 0x%lx, offset 0x%llx pages",
			      ret, pfn, want, offset);
}

/* Ranges of 1, 2 and 3 pages, down through memory */
static void vfio_pci_find_pfn_of_many(struct kunit *test)
{
	const struct count_case *param = test->param_value;
	u32 i, n = param->nr_ranges;
	unsigned long pfn;
	struct buffer buf;
	u64 offset = 0;

	init_buffer(test, &buf, n);
	for (i = 0; i < n; i++)
		append_range(&buf, (unsigned long)(n - i) * STEP, 1 + i % 3);
	finish_buffer(&buf);
	KUNIT_ASSERT_EQ(test, buf.nr_ranges, n);

	for (i = 0; i < n; i++) {
		expect_page(test, &buf, offset, (unsigned long)(n - i) * STEP);
		offset += i % 3;
		expect_page(test, &buf, offset,
			    (unsigned long)(n - i) * STEP + i % 3);
		offset++;
	}
	KUNIT_EXPECT_EQ(test, -ERANGE, find(&buf, offset, 0, &pfn));
}

static void vfio_pci_merge_ranges_of_many(struct kunit *test)
{
	const struct count_case *param = test->param_value;
	u32 i, n = param->nr_ranges;
	unsigned long pfn = STEP;
	struct buffer buf;

	init_buffer(test, &buf, n);
	for (i = 0; i < n; i++) {
		append_range(&buf, pfn, 1 + i % 3);
		pfn += 1 + i % 3;
	}
	finish_buffer(&buf);

	KUNIT_ASSERT_EQ(test, buf.nr_ranges, 1);
	KUNIT_EXPECT_EQ(test, buf.phys_vec[0].paddr, PFN_PHYS(STEP));
	KUNIT_EXPECT_EQ(test, buf.phys_vec[0].len,
			(size_t)(pfn - STEP) << PAGE_SHIFT);
	expect_page(test, &buf, 0, STEP);
	expect_page(test, &buf, pfn - STEP - 1, pfn - 1);
	KUNIT_EXPECT_EQ(test, -ERANGE, find(&buf, pfn - STEP, 0, &pfn));
}

#define RANDOM_SEED	0x76666970
#define RANDOM_ROUNDS	200
#define RANDOM_RANGES	24
#define RANDOM_ORDER	8	/* of the longest range, and of the lookup */
#define RANDOM_PAGES	(RANDOM_RANGES << RANDOM_ORDER)

/* What is known of a buffer that is written down page by page */
struct page_list {
	unsigned long pfn[RANDOM_PAGES];
	/* How many pages from here on are consecutive in memory */
	unsigned long run[RANDOM_PAGES];
	u32 nr_pages;
	u32 nr_runs;
};

static void random_range(struct rnd_state *rnd, struct pfn_range *range,
			 const struct pfn_range *prev)
{
	u32 kind = prandom_u32_state(rnd) % 8;
	u32 order = prandom_u32_state(rnd) % (RANDOM_ORDER + 1);

	range->nr = 1 + prandom_u32_state(rnd) % (1U << order);
	range->pfn = prandom_u32_state(rnd) % RANDOM_PAGES;
	if (prev->nr && kind < 4)
		range->pfn = prev->pfn + prev->nr;
	else if (prev->nr && kind == 4)
		*range = *prev;
	else if (kind == 5 && range->nr <= prev->pfn)
		range->pfn = prev->pfn - range->nr;
	else if (kind < 7)
		range->pfn = ALIGN_DOWN(range->pfn, 1UL << order);
}

static void list_range(struct page_list *list, const struct pfn_range *range)
{
	unsigned long i;

	for (i = 0; i < range->nr; i++)
		list->pfn[list->nr_pages++] = range->pfn + i;
}

static void count_runs(struct page_list *list)
{
	u32 i = list->nr_pages;

	list->nr_runs = 0;
	while (i--) {
		if (i + 1 < list->nr_pages &&
		    list->pfn[i] + 1 == list->pfn[i + 1]) {
			list->run[i] = list->run[i + 1] + 1;
		} else {
			list->run[i] = 1;
			list->nr_runs++;
		}
	}
}

static int find_in_list(const struct page_list *list, u32 offset,
			unsigned int order, unsigned long *pfn)
{
	if (offset >= list->nr_pages)
		return -ERANGE;
	if (list->run[offset] >> order == 0 ||
	    list->pfn[offset] % (1UL << order))
		return -EAGAIN;
	*pfn = list->pfn[offset];
	return 0;
}

static void compare_with_list(struct kunit *test, const struct buffer *buf,
			      const struct page_list *list,
			      unsigned int max_order, u32 layout)
{
	unsigned int order;
	u32 offset;

	KUNIT_ASSERT_EQ_MSG(test, buf->nr_ranges, list->nr_runs, "layout %u",
			    layout);
	for (offset = 0; offset <= list->nr_pages; offset++) {
		for (order = 0; order <= max_order; order++) {
			unsigned long pfn = ULONG_MAX, want = ULONG_MAX;
			int want_ret = find_in_list(list, offset, order, &want);
			int ret = find(buf, offset, order, &pfn);

			if (ret != want_ret || (!ret && pfn != want))
				KUNIT_FAIL_AND_ABORT(test,
						     "layout %u, offset 0x%x pages, order %u: %d, PFN 0x%lx for %d, 0x%lx",
						     layout, offset, order, ret,
						     pfn, want_ret, want);
		}
	}
}

/*
 * Half of the ranges are adjacent to the one before.  Of the others some repeat
 * it, are adjacent in reverse, aligned, or overlap.
 */
static void vfio_pci_find_pfn_random(struct kunit *test)
{
	struct page_list *list = alloc_array(test, 1, sizeof(*list));
	struct rnd_state rnd;
	struct buffer buf;
	u32 round, i;

	prandom_seed_state(&rnd, RANDOM_SEED);
	init_buffer(test, &buf, RANDOM_RANGES);

	for (round = 0; round < RANDOM_ROUNDS; round++) {
		u32 nr_ranges = 1 + prandom_u32_state(&rnd) % RANDOM_RANGES;
		struct pfn_range range = {}, prev = {};

		buf.nr_ranges = 0;
		list->nr_pages = 0;
		for (i = 0; i < nr_ranges; i++) {
			random_range(&rnd, &range, &prev);
			append_range(&buf, range.pfn, range.nr);
			list_range(list, &range);
			prev = range;
		}
		finish_buffer(&buf);
		count_runs(list);
		compare_with_list(test, &buf, list, RANDOM_ORDER, round);
	}
}

#define SMALL_RANGES	3
#define SMALL_PAGES	3	/* of the longest range */
#define SMALL_PFNS	6	/* at which a range can start, from 0 on */
#define SMALL_KINDS	(SMALL_PAGES * SMALL_PFNS)
/* The last one that fits, in ranges that have become one, and one more */
#define SMALL_ORDER	4

/*
 * All that there are of a few short ranges.  A layout is a number to the base of
 * the kinds of ranges: a 1 in front, and behind it a digit for each range, the
 * last one of them for the first range.
 */
static void vfio_pci_find_pfn_small(struct kunit *test)
{
	struct page_list *list = alloc_array(test, 1, sizeof(*list));
	u32 nr_ranges, layout, rest, start = 1;
	struct buffer buf;

	init_buffer(test, &buf, SMALL_RANGES);

	for (nr_ranges = 1; nr_ranges <= SMALL_RANGES; nr_ranges++) {
		start *= SMALL_KINDS;
		for (layout = start; layout < 2 * start; layout++) {
			buf.nr_ranges = 0;
			list->nr_pages = 0;
			for (rest = layout; rest > 1; rest /= SMALL_KINDS) {
				struct pfn_range range = {
					.pfn = rest % SMALL_PFNS,
					.nr = 1 + rest / SMALL_PFNS % SMALL_PAGES,
				};

				append_range(&buf, range.pfn, range.nr);
				list_range(list, &range);
			}
			finish_buffer(&buf);
			count_runs(list);
			compare_with_list(test, &buf, list, SMALL_ORDER, layout);
		}
	}
}

static struct kunit_case vfio_pci_pfn_cases[] = {
	KUNIT_CASE_PARAM(vfio_pci_merge_ranges_table, merge_gen_params),
	KUNIT_CASE_PARAM(vfio_pci_merge_ranges_of_many, count_gen_params),
	KUNIT_CASE(vfio_pci_merge_ranges_wide),
	KUNIT_CASE_PARAM(vfio_pci_find_pfn_table, find_gen_params),
	KUNIT_CASE_PARAM(vfio_pci_find_pfn_of_many, count_gen_params),
	KUNIT_CASE(vfio_pci_find_pfn_random),
	KUNIT_CASE(vfio_pci_find_pfn_small),
	{}
};

static struct kunit_suite vfio_pci_pfn_suite = {
	.name = "vfio_pci_pfn",
	.test_cases = vfio_pci_pfn_cases,
};

kunit_test_suite(vfio_pci_pfn_suite);

MODULE_DESCRIPTION("KUnit tests of vfio-pci's lookup of PFNs");
MODULE_IMPORT_NS("EXPORTED_FOR_KUNIT_TESTING");
MODULE_LICENSE("GPL");
