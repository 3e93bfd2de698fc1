/* One source for several levels of a processor.

   A file of kernels (*.inc) is included once a level, each function with a name of its own by
   level; best_level() says at run time which of them this processor can run. So one build
   serves every machine of an architecture, at the speed of its widest registers.

       #include "levels.h"
       #define KERNELS "my_kernels.inc"
       #include "every_level.inc"

   See every_level.inc for what a file of kernels finds defined.
*/
#ifndef SKNN_LEVELS_H
#define SKNN_LEVELS_H

#if defined(__x86_64__) && defined(__clang__)
#define HAS_LEVELS 1
#define BEGIN_V3 _Pragma("clang attribute push(__attribute__((target(\"avx2,fma\"))), apply_to = function)")
/* clang drops the whole attribute where it does not know a word of it, such as prefer-vector-width. */
#define BEGIN_V4 _Pragma("clang attribute push(__attribute__((target(\"avx512f,avx512dq,avx512bw,avx512vl,avx2,fma\"))), apply_to = function)")
#define END_LEVEL _Pragma("clang attribute pop")
#elif defined(__x86_64__) && defined(__GNUC__)
#define HAS_LEVELS 1
#define BEGIN_V3 _Pragma("GCC push_options") _Pragma("GCC target(\"avx2,fma\")")
#define BEGIN_V4 _Pragma("GCC push_options") _Pragma("GCC target(\"avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,prefer-vector-width=512\")")
#define END_LEVEL _Pragma("GCC pop_options")
#endif

#if defined(_MSC_VER)
#define RESTRICT __restrict
#else
#define RESTRICT restrict
#endif

enum level { LEVEL_BASE = 0, LEVEL_V3 = 1, LEVEL_V4 = 2 };

static inline enum level best_level(void)
{
#ifdef HAS_LEVELS
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq")
        && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl"))
        return LEVEL_V4;
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
        return LEVEL_V3;
#endif
    return LEVEL_BASE;
}

#endif
