// Stands in for a header that the apache-tvm wheel does not ship; see third_party/README.md.
#ifndef TVM_SUPPORT_IO_H_
#define TVM_SUPPORT_IO_H_

#include <cstddef>
#include <type_traits>

namespace tvm {
namespace support {

/*! \brief A byte stream: what the inline Load / Save of tvm::runtime::Tensor are written against.
 */
class Stream {
 public:
  virtual ~Stream() = default;
  virtual size_t Read(void* data, size_t size) = 0;
  virtual size_t Write(const void* data, size_t size) = 0;

  template <typename T>
  bool Read(T* value) {
    static_assert(std::is_trivially_copyable_v<T>);
    return Read(static_cast<void*>(value), sizeof(T)) == sizeof(T);
  }
  template <typename T>
  void Write(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    Write(static_cast<const void*>(&value), sizeof(T));
  }
  template <typename T>
  bool ReadArray(T* values, size_t count) {
    return Read(static_cast<void*>(values), sizeof(T) * count) == sizeof(T) * count;
  }
  template <typename T>
  void WriteArray(const T* values, size_t count) {
    Write(static_cast<const void*>(values), sizeof(T) * count);
  }
};

}  // namespace support
}  // namespace tvm

#endif  // TVM_SUPPORT_IO_H_
