// Stands in for a header that the apache-tvm wheel does not ship; see third_party/README.md.
#ifndef TVM_SUPPORT_SERIALIZER_H_
#define TVM_SUPPORT_SERIALIZER_H_

#include <tvm/support/io.h>

namespace tvm {
namespace support {

/*! \brief Declared so that tvm/runtime/vm/executable.h can specialise it. */
template <typename T>
struct Serializer;

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_SERIALIZER_H_
