/*!
 * \file pybind/register.h
 * \brief The registration function of every file in this folder.
 */
#ifndef KVCTL_PYBIND_REGISTER_H_
#define KVCTL_PYBIND_REGISTER_H_

#include <pybind11/pybind11.h>

namespace kvctl {

void RegisterErrors(pybind11::module_& module);
void RegisterTokenTree(pybind11::module_& module);
void RegisterNgramIndex(pybind11::module_& module);
void RegisterMask(pybind11::module_& module);
void RegisterBestFirst(pybind11::module_& module);
void RegisterSuffixStore(pybind11::module_& module);

}  // namespace kvctl

#endif  // KVCTL_PYBIND_REGISTER_H_
