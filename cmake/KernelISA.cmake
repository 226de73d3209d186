# Kernels for one instruction set live in files named *_avx2.cc and *_avx512.cc; nothing else is compiled for more than
# the x86-64 baseline, so that the library loads on any machine and chooses at run time.
foreach(source ${kernel_sources})
  if(source MATCHES "_avx2\\.cc$")
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS "-mavx2;-mfma;-mf16c")
  elseif(source MATCHES "_avx512\\.cc$")
    # GCC 12's own AVX-512 intrinsics pass an undefined operand on purpose and warn about it (GCC bug 105593).
    set_source_files_properties(${source} PROPERTIES COMPILE_OPTIONS
      "-mavx512f;-mavx512bw;-mavx512vl;-mavx512dq;-mavx2;-mfma;-mf16c;-Wno-maybe-uninitialized")
  endif()
  if(source MATCHES "/attention_[a-z0-9]+\\.cc$")
    # A row's result must not depend on where the compiler finds a multiplication to fuse with an addition.
    set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS "-ffp-contract=off")
  endif()
  if(source MATCHES "/vocab_ops_")
    # The loops are written in the order in which vectors do not wait for each other.
    set_property(SOURCE ${source} APPEND PROPERTY COMPILE_OPTIONS "-ffp-contract=off;-fno-schedule-insns2")
  endif()
endforeach()
