# kvctl_kernels_for(<room> <name> ISA baseline|avx2|avx_vnni|avx512|vnni|amx [EXACT] [OPTIONS ...] SOURCES ...)
#
# Adds an object library of kernels for one instruction set to kvctl_kernels. Nothing else is compiled for more than the
# x86-64 baseline, so that the library loads on any machine and chooses at run time.
# EXACT: a result must not depend on where the compiler finds a multiplication to fuse with an addition.
set(kvctl_isa_baseline "")
set(kvctl_isa_avx2 -mavx2 -mfma -mf16c)
set(kvctl_isa_avx_vnni -mavxvnni ${kvctl_isa_avx2})
# GCC 12's own AVX-512 intrinsics pass an undefined operand on purpose and warn about it (GCC bug 105593).
set(kvctl_isa_avx512 -mavx512f -mavx512bw -mavx512vl -mavx512dq ${kvctl_isa_avx2}
    $<$<CXX_COMPILER_ID:GNU>:-Wno-maybe-uninitialized>)
set(kvctl_isa_vnni -mavx512vnni ${kvctl_isa_avx512})
# Every processor with AMX has the conversions to bfloat16, the products of bytes, and those of matrices of bits.
set(kvctl_isa_amx -mamx-tile -mamx-bf16 -mamx-int8 -mgfni -mavx512bf16 -mavx512vnni ${kvctl_isa_avx512})

function(kvctl_kernels_for room name)
  cmake_parse_arguments(kernels "EXACT" "ISA" "OPTIONS;SOURCES" ${ARGN})
  if(NOT kernels_ISA MATCHES "^(baseline|avx2|avx_vnni|avx512|vnni|amx)$")
    message(FATAL_ERROR "${name}: ISA must be baseline, avx2, avx_vnni, avx512, vnni or amx, got '${kernels_ISA}'")
  endif()
  list(TRANSFORM kernels_SOURCES PREPEND "cpp/${room}/")
  add_library(${name} OBJECT ${kernels_SOURCES})
  target_compile_options(${name} PRIVATE ${kvctl_isa_${kernels_ISA}} ${kernels_OPTIONS})
  if(kernels_EXACT)
    target_compile_options(${name} PRIVATE -ffp-contract=off)
  endif()
  string(REPLACE "/" "_" room_name "room_${room}")
  target_link_libraries(${name} PRIVATE ${room_name}_headers)
  target_sources(kvctl_kernels PRIVATE $<TARGET_OBJECTS:${name}>)
endfunction()
