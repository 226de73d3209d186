# Collectives for TVM's Disco: a plugin for each communication library that is there, loaded when a session asks for it.
# Gloo: Debian's libgloo-dev, or a build of https://github.com/pytorch/gloo that -DGLOO_ROOT names.
# NCCL: nothing is needed here, neither its header, which comes with a library of 305 MB, nor CUDA; libnccl.so.2 is
# looked for when a session asks for it. Where nccl.h is, the tests compare kvctl's declarations with it.

option(KVCTL_DISTRIBUTED "Build the collectives for several devices, where their libraries are" ON)
find_library(TVM_RUNTIME_EXTRA tvm_runtime_extra HINTS "${TVM_ROOT}/lib" NO_DEFAULT_PATH)
find_path(GLOO_INCLUDE_DIR gloo/rendezvous/context.h HINTS ${GLOO_ROOT} PATH_SUFFIXES include)
find_library(GLOO_LIBRARY gloo HINTS ${GLOO_ROOT} PATH_SUFFIXES lib)

function(kvctl_collectives library)
  cmake_parse_arguments(plugin "" "" "SOURCES;LINKS" ${ARGN})
  set(target kvctl_disco_${library})
  list(TRANSFORM plugin_SOURCES PREPEND cpp/distributed/)
  add_library(${target} MODULE cpp/distributed/disco_functions.cc cpp/distributed/meeting.cc ${plugin_SOURCES})
  target_link_libraries(${target} PRIVATE room_distributed_headers tvm::runtime "${TVM_RUNTIME_EXTRA}" kvctl
                        ${plugin_LINKS})
  set_target_properties(${target} PROPERTIES BUILD_RPATH_USE_ORIGIN ON INSTALL_RPATH "$ORIGIN")
  install(TARGETS ${target} LIBRARY DESTINATION lib)
endfunction()

set(kvctl_has_gloo OFF)
if(KVCTL_DISTRIBUTED AND TVM_RUNTIME_EXTRA AND GLOO_INCLUDE_DIR AND GLOO_LIBRARY)
  set(kvctl_has_gloo ON)
  add_library(gloo_imported SHARED IMPORTED)
  set_target_properties(gloo_imported PROPERTIES IMPORTED_LOCATION "${GLOO_LIBRARY}")
  target_include_directories(gloo_imported SYSTEM INTERFACE "${GLOO_INCLUDE_DIR}")
  kvctl_collectives(gloo SOURCES communicator_gloo.cc LINKS gloo_imported)
endif()
message(STATUS "Collectives over Gloo: ${kvctl_has_gloo} (${GLOO_LIBRARY})")

set(kvctl_has_nccl OFF)
if(KVCTL_DISTRIBUTED AND TVM_RUNTIME_EXTRA)
  set(kvctl_has_nccl ON)
  kvctl_collectives(nccl SOURCES communicator_nccl.cc nccl_library.cc LINKS ${CMAKE_DL_LIBS})
endif()
message(STATUS "Collectives over NCCL, which is looked for at run time: ${kvctl_has_nccl}")
