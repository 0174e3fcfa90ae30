// Inner loops that are worth the wide registers of newer processors. A function marked so is compiled twice, and the loader picks
// one. Results are the same bit for bit: nothing is contracted or reordered. Sanitizers do not go along with that.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__) && \
    !defined(__SANITIZE_THREAD__)
#define TIDEPOOL_PLAN_WIDE __attribute__((target_clones("avx2", "default")))
#else
#define TIDEPOOL_PLAN_WIDE
#endif
