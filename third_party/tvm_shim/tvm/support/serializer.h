// Stands in for a header that the apache-tvm wheel does not ship; see third_party/README.md.
#ifndef TVM_SUPPORT_SERIALIZER_H_
#define TVM_SUPPORT_SERIALIZER_H_

#include <tvm/support/io.h>

#endif  // TVM_SUPPORT_SERIALIZER_H_
