/*!
 * \file core/support/elf_file.h
 * \brief Checks that the file of a shared library is complete.
 */
#ifndef KVCTL_CORE_SUPPORT_ELF_FILE_H_
#define KVCTL_CORE_SUPPORT_ELF_FILE_H_

#include <string>

namespace kvctl {

/*!
 * \brief Refuses a file that is not a 64-bit ELF shared library, or that ends too early.
 *
 * The dynamic linker maps what the headers promise without looking at the file's size, so a library
 * whose download broke off would end the process with a bus error.
 *
 * \throws Error kValue with the file's size and the size that its headers need.
 */
void CheckElfFile(const std::string& path);

}  // namespace kvctl

#endif  // KVCTL_CORE_SUPPORT_ELF_FILE_H_
