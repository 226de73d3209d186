# Collectives for TVM's Disco: a plugin for each communication library that is there, loaded when a session asks for it.
# Gloo: Debian's libgloo-dev, or a build of https://github.com/pytorch/gloo that -DGLOO_ROOT names.

option(KVCTL_DISTRIBUTED "Build the collectives for several devices, where their libraries are" ON)
find_library(TVM_RUNTIME_EXTRA tvm_runtime_extra HINTS "${TVM_ROOT}/lib" NO_DEFAULT_PATH)
find_path(GLOO_INCLUDE_DIR gloo/rendezvous/context.h HINTS ${GLOO_ROOT} PATH_SUFFIXES include)
find_library(GLOO_LIBRARY gloo HINTS ${GLOO_ROOT} PATH_SUFFIXES lib)

function(kvctl_collectives library source)
  set(target kvctl_disco_${library})
  add_library(${target} MODULE cpp/distributed/disco_functions.cc ${source})
  target_link_libraries(${target} PRIVATE room_distributed_headers tvm::runtime "${TVM_RUNTIME_EXTRA}" kvctl ${ARGN})
  set_target_properties(${target} PROPERTIES BUILD_RPATH_USE_ORIGIN ON INSTALL_RPATH "$ORIGIN")
  install(TARGETS ${target} LIBRARY DESTINATION lib)
endfunction()

set(kvctl_has_gloo OFF)
if(KVCTL_DISTRIBUTED AND TVM_RUNTIME_EXTRA AND GLOO_INCLUDE_DIR AND GLOO_LIBRARY)
  set(kvctl_has_gloo ON)
  add_library(gloo_imported SHARED IMPORTED)
  set_target_properties(gloo_imported PROPERTIES IMPORTED_LOCATION "${GLOO_LIBRARY}")
  target_include_directories(gloo_imported SYSTEM INTERFACE "${GLOO_INCLUDE_DIR}")
  kvctl_collectives(gloo cpp/distributed/communicator_gloo.cc gloo_imported)
endif()
message(STATUS "Collectives over Gloo: ${kvctl_has_gloo} (${GLOO_LIBRARY})")
