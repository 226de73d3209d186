/*!
 * \file kvctl/compat/object_macros.h
 * \brief The macros of 2024 that declare an object and its reference.
 *
 * Part of kvctl/registry_compat.h, which extensions include.
 */
#ifndef KVCTL_COMPAT_OBJECT_MACROS_H_
#define KVCTL_COMPAT_OBJECT_MACROS_H_

#include <tvm/ffi/object.h>

#include <utility>

/*! \brief A class that others may derive from; it defines _type_key itself, as it did. */
#define TVM_DECLARE_BASE_OBJECT_INFO(TypeName, ParentType) \
  TVM_FFI_DECLARE_OBJECT_INFO_PREDEFINED_TYPE_KEY(TypeName, ParentType)

/*! \brief A class that nothing derives from; it defines _type_key itself, as it did. */
#define TVM_DECLARE_FINAL_OBJECT_INFO(TypeName, ParentType)    \
  [[maybe_unused]] static constexpr int _type_child_slots = 0; \
  [[maybe_unused]] static constexpr bool _type_final = true;   \
  TVM_FFI_DECLARE_OBJECT_INFO_PREDEFINED_TYPE_KEY(TypeName, ParentType)

#define KVCTL_COMPAT_CONCAT_(a, b) a##b
#define KVCTL_COMPAT_CONCAT(a, b) KVCTL_COMPAT_CONCAT_(a, b)
/*! \brief At namespace scope: makes the type known when the library is loaded. */
#define TVM_REGISTER_OBJECT_TYPE(TypeName)                                                  \
  [[maybe_unused]] static const auto KVCTL_COMPAT_CONCAT(kvctl_compat_type_, __COUNTER__) = \
      TypeName::_GetOrAllocRuntimeTypeIndex()

#define KVCTL_COMPAT_REF_METHODS(TypeName, ParentType, ObjectName, Pointer)            \
  explicit TypeName(::tvm::ffi::ObjectPtr<ObjectName> n) : ParentType(std::move(n)) {} \
  explicit TypeName(::tvm::ffi::UnsafeInit tag) : ParentType(tag) {}                   \
  TypeName(const TypeName&) = default;                                                 \
  TypeName(TypeName&&) = default;                                                      \
  TypeName& operator=(const TypeName&) = default;                                      \
  TypeName& operator=(TypeName&&) = default;                                           \
  Pointer operator->() const { return static_cast<Pointer>(data_.get()); }             \
  Pointer get() const { return operator->(); }                                         \
  using ContainerType = ObjectName

/*! \brief A reference that may be null and reads its object. */
#define TVM_DEFINE_OBJECT_REF_METHODS(TypeName, ParentType, ObjectName)          \
  TypeName() = default;                                                          \
  KVCTL_COMPAT_REF_METHODS(TypeName, ParentType, ObjectName, const ObjectName*); \
  [[maybe_unused]] static constexpr bool _type_is_nullable = true

/*! \brief A reference that may be null and changes its object. */
#define TVM_DEFINE_MUTABLE_OBJECT_REF_METHODS(TypeName, ParentType, ObjectName) \
  TypeName() = default;                                                         \
  KVCTL_COMPAT_REF_METHODS(TypeName, ParentType, ObjectName, ObjectName*);      \
  [[maybe_unused]] static constexpr bool _type_is_nullable = true

/*! \brief A reference that is never null and reads its object. */
#define TVM_DEFINE_NOTNULLABLE_OBJECT_REF_METHODS(TypeName, ParentType, ObjectName) \
  KVCTL_COMPAT_REF_METHODS(TypeName, ParentType, ObjectName, const ObjectName*);    \
  [[maybe_unused]] static constexpr bool _type_is_nullable = false

/*! \brief A reference that is never null and changes its object. */
#define TVM_DEFINE_MUTABLE_NOTNULLABLE_OBJECT_REF_METHODS(TypeName, ParentType, ObjectName) \
  KVCTL_COMPAT_REF_METHODS(TypeName, ParentType, ObjectName, ObjectName*);                  \
  [[maybe_unused]] static constexpr bool _type_is_nullable = false

#endif  // KVCTL_COMPAT_OBJECT_MACROS_H_
